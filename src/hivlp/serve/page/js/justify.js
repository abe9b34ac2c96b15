// Rows of equal width in which every picture keeps its shape.

const NARROWEST = 0.5;
const WIDEST = 3;

/** The shape that a picture is shown in: width by height, within what a row bears. */
export const ratioOf = (hit) =>
  hit.width > 0 && hit.height > 0 ? Math.min(WIDEST, Math.max(NARROWEST, hit.width / hit.height)) : 1;

/**
 * Rows of pictures, all of one width.
 *
 * Breaks come where the sum of shapes passes equal shares, so that the last row is as full as the others: blocks of rows
 * can be laid below one another, and one that is not loaded yet takes the place that it will need. That is why this is
 * not one of the layout libraries, which leave a ragged last row.
 *
 * @param {number[]} ratios width by height of each picture.
 * @param {number} width of a row, in pixels.
 * @param {number} target height of a row, in pixels, that is come near.
 * @param {number} gap between pictures, in pixels.
 * @param {boolean} last whether a last row that is short may end early.
 * @returns {{rows: {top: number, height: number, first: number, left: number[], widths: number[]}[], height: number}}
 */
export function justify(ratios, width, target, gap, last) {
  const total = ratios.reduce((sum, ratio) => sum + ratio, 0);
  const wanted = (total * target) / Math.max(1, width - gap);
  const count = Math.max(1, last ? Math.ceil(wanted - 0.15) : Math.round(wanted));
  // A short last row keeps the height of the others: then shares are what fills a row, not what is there.
  const short = last && (count === 1 || count - wanted > 0.15);
  const share = short ? width / target : total / count;
  const rows = [];
  let first = 0;
  let sum = 0;
  let passed = 0;
  let top = 0;
  const close = (end) => {
    const room = width - gap * (end - first - 1);
    const ending = end === ratios.length && short;
    const height = ending ? Math.min(target, room / sum) : room / sum;
    const row = { top, height: Math.round(height), first, left: [], widths: [] };
    let left = 0;
    for (let place = first; place < end; place += 1) {
      const exact = height * ratios[place];
      row.left.push(Math.round(left));
      row.widths.push(Math.round(left + exact) - Math.round(left));
      left += exact + gap;
    }
    rows.push(row);
    top += row.height + gap;
    first = end;
    sum = 0;
  };
  ratios.forEach((ratio, place) => {
    // A picture that would stand across a share's end begins the next row if most of it would.
    if (place > first && rows.length < count - 1 && passed + ratio / 2 > share * (rows.length + 1)) close(place);
    sum += ratio;
    passed += ratio;
  });
  if (ratios.length) close(ratios.length);
  return { rows, height: top };
}
