"use strict";
/* Sliders, and the image of what they say. */
(() => {
  const root = document.querySelector(".explorer");
  const page = JSON.parse(document.querySelector("#explorer-data").textContent);
  const decode = pyvaeNetwork(page.layers);
  const [channels, height, width] = page.shape;
  const code = Float32Array.from(page.starts[0].code);
  const shown = new Float32Array(code.length).fill(NaN); // that the image is of
  const find = (selector) => root.querySelector(selector);
  const all = (selector) => Array.from(root.querySelectorAll(selector));
  let start = page.starts[0];

  // pictures

  /** A function that paints pixels on a canvas, which holds as many images side by side as below one another. */
  function painter(canvas, tiles = 1) {
    canvas.width = width * tiles;
    canvas.height = height * tiles;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    image.data.fill(255);
    const green = channels > 1 ? 1 : 0;
    const blue = channels > 1 ? 2 : 0;
    return (pixels, column = 0, row = 0) => {
      for (let i = 0, from = 0; i < image.data.length; i += 4, from += channels) {
        image.data[i] = pixels[from] * 255; // which rounds
        image.data[i + 1] = pixels[from + green] * 255;
        image.data[i + 2] = pixels[from + blue] * 255;
      }
      context.putImageData(image, column * width, row * height);
    };
  }

  const canvas = find(".explorer-image");
  const reconstruction = find(".explorer-reconstruction");
  const paint = painter(canvas);
  const paintReconstruction = painter(reconstruction);
  let asked = false;
  let frames = 0;

  /** At the next frame, and then once, however often it was asked for. */
  function show() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (code.some((value, i) => value !== shown[i])) {
        shown.set(code);
        paint(decode(code));
        frames++;
        show(); // the map, when nothing moves
      } else if (map && map.draw()) {
        show();
      }
    });
  }

  /** Of pixels, in words: how bright, and where. */
  function described(pixels) {
    let [sum, across, down] = [0, 0, 0];
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let c = 0; c < channels; c++, i++) {
          sum += pixels[i];
          across += pixels[i] * (x + 0.5);
          down += pixels[i] * (y + 0.5);
        }
      }
    }
    if (sum === 0) return "no brightness at all";
    const percent = (share) => `${Math.round(100 * share)} %`;
    const where = `${percent(across / sum / width)} from the left and ${percent(down / sum / height)} from the top`;
    return `mean brightness ${percent(sum / pixels.length)}, its centre ${where}`;
  }

  const status = find(".explorer-said");
  let pause = 0;

  /** In the live region, once nothing has moved for a while. */
  function say(text) {
    clearTimeout(pause);
    pause = setTimeout(() => {
      const words = described(decode(code));
      canvas.setAttribute("aria-label", `Decoded image: ${words}`);
      status.textContent = `${text} The image has ${words}.`;
    }, 500);
  }

  // the code

  const sliders = page.sliders.map((about, k) => {
    const row = find(`[data-slider="${k}"]`);
    return {
      ...about,
      row,
      input: row.querySelector("input"),
      value: row.querySelector(".explorer-value"),
      sweep: row.querySelector(".explorer-sweep"),
    };
  });
  const radios = all('[name="explorer-class"]');
  const list = find(".explorer-classes select"); // in their place, where there are many
  const rounded = (value) => value.toFixed(2).replace("-0.00", "0.00");
  const shareOf = ({ span }, value) => Math.min(Math.max((value + span) / (2 * span), 0), 1);

  /** A slider as the code has it. */
  function place(slider) {
    const value = code[slider.index];
    slider.input.value = value;
    slider.input.setAttribute(
      "aria-valuetext",
      [slider.name, rounded(value), ...(slider.follows ? [`follows ${slider.follows}`] : [])].join(", "),
    );
    slider.value.textContent = rounded(value);
    slider.row.style.setProperty("--at", shareOf(slider, value));
    slider.row.style.setProperty("--start", shareOf(slider, start.code[slider.index]));
    if (map) map.mark();
  }

  function placeAll() {
    sliders.forEach(place);
    radios.forEach((radio, k) => (radio.checked = code[page.choice.first + k] === 1));
    if (list) list.selectedIndex = code.indexOf(1, page.choice.first) - page.choice.first;
    show();
  }

  function set(slider, value) {
    code[slider.index] = Math.min(Math.max(value, -slider.span), slider.span);
    place(slider);
    show();
  }

  function move(slider, value) {
    stop();
    set(slider, value);
    say(`${slider.name} is ${rounded(code[slider.index])}.`);
  }

  function choose(k) {
    for (let j = 0; j < page.choice.count; j++) code[page.choice.first + j] = j === k ? 1 : 0;
    placeAll();
  }

  function startFrom(k) {
    stop();
    start = page.starts[k];
    code.set(start.code);
    all("[data-start]").forEach((button, j) => button.setAttribute("aria-pressed", String(j === k)));
    find(".explorer-input").src = all("[data-start] img")[k].src;
    const pixels = decode(code);
    paintReconstruction(pixels);
    reconstruction.setAttribute("aria-label", `Drawn from the start: ${described(pixels)}`);
    placeAll();
    say(`Started from ${start.name}.`);
  }

  // a map of two latents: the images over both, and a mark to drag

  const map = makeMap(find(".explorer-map"));

  function makeMap(root) {
    if (!root) return null;
    const plane = root.querySelector(".explorer-plane");
    const canvas = plane.querySelector("canvas");
    const tiles = Math.max(width, height) > 96 ? 5 : 9;
    const paintTile = painter(canvas, tiles);
    const selects = Array.from(root.querySelectorAll("select"));
    const axes = [sliders[0], sliders[1]];
    const drawn = new Float32Array(code.length); // that the map is of, its axes left out
    const tile = new Float32Array(code.length);
    let next = 0;
    let visible = false;

    const placed = ({ span }, share) => (2 * Math.min(Math.max(share, 0), 1) - 1) * span;
    const isAxis = (i) => i === axes[0].index || i === axes[1].index;

    /** Some tiles, for a hundredth of a second; whether there are more. */
    function draw() {
      if (!visible) return false;
      if (code.some((value, i) => value !== drawn[i] && !isAxis(i))) {
        drawn.set(code);
        next = 0;
      }
      for (const end = performance.now() + 10; next < tiles * tiles && performance.now() <= end; next++) {
        const [column, row] = [next % tiles, Math.floor(next / tiles)];
        tile.set(code);
        tile[axes[0].index] = placed(axes[0], (column + 0.5) / tiles);
        tile[axes[1].index] = placed(axes[1], 1 - (row + 0.5) / tiles);
        paintTile(decode(tile), column, row);
      }
      return next < tiles * tiles;
    }

    function mark() {
      plane.style.setProperty("--across", shareOf(axes[0], code[axes[0].index]));
      plane.style.setProperty("--up", shareOf(axes[1], code[axes[1].index]));
    }

    function turn() {
      selects.forEach((select, k) => (select.value = sliders.indexOf(axes[k])));
      const what = `${axes[0].name} across and ${axes[1].name} up`;
      canvas.setAttribute("aria-label", `Images over ${what}, which the sliders set too`);
      next = 0;
      mark();
      show();
    }

    function drag(event) {
      const box = canvas.getBoundingClientRect();
      stop();
      set(axes[0], placed(axes[0], (event.clientX - box.left) / box.width));
      set(axes[1], placed(axes[1], 1 - (event.clientY - box.top) / box.height));
      say(axes.map(({ name, index }) => `${name} is ${rounded(code[index])}.`).join(" "));
    }

    selects.forEach((select, k) =>
      select.addEventListener("change", () => {
        const chosen = sliders[Number(select.value)];
        if (chosen === axes[1 - k]) axes[1 - k] = axes[k];
        axes[k] = chosen;
        turn();
      }),
    );
    plane.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      plane.setPointerCapture(event.pointerId);
      drag(event);
    });
    plane.addEventListener("pointermove", (event) => plane.hasPointerCapture(event.pointerId) && drag(event));
    new IntersectionObserver((entries) => {
      visible = entries[entries.length - 1].isIntersecting;
      show();
    }).observe(canvas);
    return { draw, mark, turn };
  }

  // sweeps: from where it is to one end, the other, and back

  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let sweeping = null;

  function stop() {
    if (!sweeping) return;
    cancelAnimationFrame(sweeping.frame);
    mark(sweeping.slider, false);
    sweeping = null;
  }

  function mark(slider, running) {
    slider.sweep.textContent = running ? "\u25a0\ufe0e" : "\u25b6\ufe0e";
    slider.sweep.setAttribute("aria-pressed", String(running));
  }

  function sweep(slider) {
    const [from, span] = [code[slider.index], slider.span];
    const begun = performance.now();
    const step = (now) => {
      // a span a second; in few steps where motion is not wanted
      const way = Math.max(now - begun, 0) * (span / 1000);
      const gone = still.matches ? Math.floor(way / span * 2) * span / 2 : way;
      if (gone >= 4 * span) {
        stop();
        set(slider, from);
        say(`${slider.name} was swept and is back at ${rounded(from)}.`);
        return;
      }
      const turned = from + gone;
      const there = turned <= span ? turned : 2 * span - turned;
      set(slider, there >= -span ? there : -2 * span - there);
      sweeping.frame = requestAnimationFrame(step);
    };
    sweeping = { slider, frame: requestAnimationFrame(step) };
    mark(slider, true);
    status.textContent = `Sweeping ${slider.name}.`;
  }

  // what people do

  for (const slider of sliders) {
    const { input } = slider;
    input.addEventListener("input", () => move(slider, Number(input.value)));
    input.addEventListener("dblclick", () => move(slider, 0));
    input.addEventListener("keydown", (event) => {
      const ways = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
      const zero = ["0", "Delete", "Backspace"].includes(event.key);
      if ((!zero && !ways[event.key]) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const step = (slider.span / 30) * (event.shiftKey ? 0.1 : 1);
      move(slider, zero ? 0 : code[slider.index] + ways[event.key] * step);
    });
    slider.row.querySelector(".explorer-zero").addEventListener("click", () => move(slider, 0));
    slider.sweep.addEventListener("click", () => {
      const other = !sweeping || sweeping.slider !== slider;
      stop();
      if (other) sweep(slider);
    });
  }
  root.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  const chosen = (k) => {
    stop();
    choose(k);
    say(`The class is ${k}.`);
  };
  radios.forEach((radio, k) => radio.addEventListener("change", () => chosen(k)));
  if (list) list.addEventListener("change", () => chosen(list.selectedIndex));
  all("[data-start]").forEach((button, k) => button.addEventListener("click", () => startFrom(k)));

  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  const DEEDS = {
    reset: () => startFrom(page.starts.indexOf(start)),
    origin: () => {
      sliders.forEach((slider) => set(slider, 0));
      say("All are 0.");
    },
    draw: () => {
      const drawn = page.prior === "normal" ? normal : () => 2 * Math.random() - 1;
      sliders.forEach((slider) => set(slider, drawn()));
      if (page.choice) choose(Math.floor(Math.random() * page.choice.count));
      say("Drawn at random.");
    },
  };
  all("[data-do]").forEach((button) =>
    button.addEventListener("click", () => {
      stop();
      DEEDS[button.dataset.do]();
    }),
  );

  startFrom(0);
  if (map) map.turn();
  document.querySelector(".explorer-wait").remove();
  root.hidden = false;
  window.pyvaeExplorer = { decode, code: () => Array.from(code), frames: () => frames };
})();
