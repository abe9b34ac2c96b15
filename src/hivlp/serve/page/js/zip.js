// Zip archives of files that are compressed already: stored, with UTF-8 names; up to 4 GiB and 65,535 files.

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

export const MOST_BYTES = 0xffffffff;
export const MOST_FILES = 0xffff;

/** The CRC-32 of bytes, as zip archives have it. */
export function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = (value >>> 8) ^ TABLE[(value ^ byte) & 255];
  return (value ^ 0xffffffff) >>> 0;
}

const DOS_DAY = (1 << 5) | 1; // 1 January 1980: what has no date

/** One archive, written a file at a time. */
export class Zip {
  constructor() {
    this.parts = [];
    this.entries = [];
    this.size = 0;
    this.names = new Set();
  }

  /** A name that the archive does not have yet. */
  named(name) {
    const [, stem, suffix] = /^(.*?)(\.[^.]*)?$/s.exec(name);
    let made = name;
    for (let number = 2; this.names.has(made.toLowerCase()); number += 1) made = `${stem} (${number})${suffix ?? ""}`;
    this.names.add(made.toLowerCase());
    return made;
  }

  add(name, bytes) {
    if (this.size + bytes.length > MOST_BYTES || this.entries.length >= MOST_FILES) {
      throw new RangeError("too much for one archive");
    }
    const encoded = new TextEncoder().encode(this.named(name));
    const crc = crc32(bytes);
    const header = record(0x04034b50, [20, 0x800, 0, 0, DOS_DAY], [crc, bytes.length, bytes.length], [encoded.length, 0]);
    this.entries.push({ encoded, crc, length: bytes.length, offset: this.size });
    this.parts.push(header, encoded, new Blob([bytes])); // a blob may lie on disk
    this.size += header.length + encoded.length + bytes.length;
  }

  /** The archive. */
  blob() {
    const directory = [];
    let length = 0;
    for (const { encoded, crc, length: bytes, offset } of this.entries) {
      const entry = record(
        0x02014b50,
        [20, 20, 0x800, 0, 0, DOS_DAY],
        [crc, bytes, bytes],
        [encoded.length, 0, 0, 0, 0],
        [0, offset],
      );
      directory.push(entry, encoded);
      length += entry.length + encoded.length;
    }
    const count = this.entries.length;
    const end = record(0x06054b50, [0, 0, count, count], [length, this.size], [0]);
    return new Blob([...this.parts, ...directory, end], { type: "application/zip" });
  }
}

/** Little-endian numbers: a signature of four bytes, then in turn lists of two bytes each and of four. */
function record(signature, ...lists) {
  const bytes = [];
  const push = (value, size) => {
    for (let place = 0; place < size; place += 1) bytes.push((value >>> (8 * place)) & 255);
  };
  push(signature, 4);
  lists.forEach((list, place) => list.forEach((value) => push(value, place % 2 ? 4 : 2)));
  return Uint8Array.from(bytes);
}
