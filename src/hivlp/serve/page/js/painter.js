// Points on a canvas, by WebGL or without.
//
// Libraries for this build their programs with new Function, which the page's security policy forbids, as it should:
// hence the few lines of WebGL here.

const VERTEX = `#version 300 es
in vec2 place;
uniform vec2 centre, scale;
uniform float size;
void main() {
  gl_Position = vec4((place - centre) * scale, 0.0, 1.0);
  gl_PointSize = size;
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
uniform vec4 colour;
out vec4 shown;
void main() {
  float edge = 1.0 - smoothstep(0.36, 0.5, distance(gl_PointCoord, vec2(0.5)));
  shown = vec4(colour.rgb, 1.0) * colour.a * edge;
}`;

/** Red, green, blue in [0, 1] of a colour of the page. */
function colourOf(canvas, name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  canvas.after(probe);
  const found = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3);
  probe.remove();
  return found.map((value) => value / 255);
}

/** How large points are and how much they cover, so that both a hundred and a million make a picture. */
function look(count, scale) {
  const crowd = Math.max(1, count / scale ** 1.6);
  return {
    size: Math.min(14, Math.max(1.6, 60 / Math.sqrt(crowd) + Math.log2(1 + scale) * 0.6)),
    cover: 0.9 * (1 + crowd / 4000) ** -0.45,
  };
}

/** A painter by WebGL 2; null where there is none, or (`fast`) none by a graphics card: the other is faster then. */
export function glPainter(canvas, xy, fast = true) {
  const gl = canvas.getContext("webgl2", { antialias: false, failIfMajorPerformanceCaveat: fast });
  if (!gl) return null;
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.bindAttribLocation(program, 0, "place");
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
  gl.useProgram(program);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const [centre, scale, size, colour] = ["centre", "scale", "size", "colour"].map(uniform);
  const buffer = (values) => {
    const made = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, made);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    return made;
  };
  const all = { points: buffer(xy), count: xy.length / 2 };
  let marked = { points: null, count: 0 };
  gl.enableVertexAttribArray(0);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const points = (which, name, pixels, cover) => {
    if (!which.count) return;
    gl.bindBuffer(gl.ARRAY_BUFFER, which.points);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    gl.uniform4f(colour, ...colourOf(canvas, name), cover);
    gl.uniform1f(size, pixels);
    gl.drawArrays(gl.POINTS, 0, which.count);
  };
  return {
    name: "webgl",
    highlight(places) {
      if (marked.points) gl.deleteBuffer(marked.points);
      marked = { points: buffer(Float32Array.from(places.flatMap((place) => [xy[2 * place], xy[2 * place + 1]]))), count: places.length };
    },
    paint({ x, y, scale: zoom, unit, width, height, ratio }) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform2f(centre, x, y);
      gl.uniform2f(scale, (2 * unit) / width, (2 * unit) / height);
      const { size: pixels, cover } = look(all.count, zoom);
      points(all, "--ink", pixels * ratio, cover);
      points(marked, "--mark", Math.max(9, pixels * 1.6) * ratio, 1);
    },
  };
}

/** A painter without WebGL: points counted by pixel, the fuller the darker; a million take some thirty milliseconds. */
export function canvasPainter(canvas, xy) {
  const context = canvas.getContext("2d");
  let marked = [];
  return {
    name: "canvas",
    highlight(places) {
      marked = places;
    },
    paint({ x, y, scale, unit, width, height }) {
      [canvas.width, canvas.height] = [Math.round(width), Math.round(height)];
      const [wide, tall] = [canvas.width, canvas.height];
      const counts = new Uint16Array(wide * tall);
      const { size, cover } = look(xy.length / 2, scale);
      const reach = Math.round((size - 1) / 2);
      const [left, top] = [wide / 2 - x * unit, tall / 2 + y * unit];
      for (let at = 0; at < xy.length; at += 2) {
        const column = Math.round(left + xy[at] * unit);
        const row = Math.round(top - xy[at + 1] * unit);
        if (column < reach || row < reach || column >= wide - reach || row >= tall - reach) continue;
        for (let dy = -reach; dy <= reach; dy += 1) {
          for (let dx = -reach; dx <= reach; dx += 1) {
            if (dx * dx + dy * dy <= (reach + 0.4) ** 2) counts[(row + dy) * wide + column + dx] += 1;
          }
        }
      }
      const image = context.createImageData(wide, tall);
      const [red, green, blue] = colourOf(canvas, "--ink").map((value) => Math.round(255 * value));
      const shades = Uint8Array.from({ length: 64 }, (_, count) => Math.round(255 * (1 - (1 - cover) ** count)));
      for (let at = 0; at < counts.length; at += 1) {
        if (!counts[at]) continue;
        image.data.set([red, green, blue, shades[Math.min(63, counts[at])]], 4 * at);
      }
      context.putImageData(image, 0, 0);
      context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--mark");
      for (const place of marked) {
        context.beginPath();
        context.arc(left + xy[2 * place] * unit, top - xy[2 * place + 1] * unit, Math.max(4, size * 0.8), 0, 7);
        context.fill();
      }
    },
  };
}
