// Lets one read charts off: a crosshair with every line's value, in all panels of one abscissa; lines can be hidden.
(() => {
  "use strict";
  const shown = (value) => {
    if (value === null || value === undefined) return "\u2013";
    const size = Math.abs(value);
    const short = (v) => String(Number(v.toPrecision(4)));
    if (size >= 1e12) return value.toPrecision(4).replace(/\.?0*e/, "e");
    if (size >= 1e9) return `${short(value / 1e9)}G`;
    if (size >= 1e6) return `${short(value / 1e6)}M`;
    if (size >= 1e4) return `${short(value / 1e3)}k`;
    return short(value);
  };
  const nearest = (grid, at) =>
    grid.reduce((best, value, i) => (Math.abs(value - at) < Math.abs(grid[best] - at) ? i : best), 0);
  const make = (svg, name, kind) => {
    svg.insertAdjacentHTML("beforeend", `<${name} class="${kind}"/>`);
    return svg.lastElementChild;
  };

  const chart = (figure, about, grids, group) => {
    const [xLow, xHigh, xStart, xEnd] = about.x;
    const [yLow, yHigh, yStart, yEnd, log] = about.y;
    const scale = log ? Math.log : (v) => v;
    const x = (v) => xStart + ((v - xLow) / (xHigh - xLow)) * (xEnd - xStart);
    const y = (v) => yStart + ((scale(v) - scale(yLow)) / (scale(yHigh) - scale(yLow))) * (yEnd - yStart);
    const plot = figure.querySelector(".plot");
    const svg = figure.querySelector("svg");
    const at = figure.querySelector(".at");
    const title = figure.querySelector("figcaption span").textContent;
    const buttons = [...figure.querySelectorAll(".legend button")];
    const paths = [...svg.querySelectorAll(".line")];
    const cross = make(svg, "path", "cross off");
    const marks = about.lines.map((_, i) => {
      const hue = [...paths[i].classList].find((name) => /^(h\d|ink)$/.test(name)) ?? "";
      const mark = make(svg, "circle", `mark off ${hue}`);
      mark.setAttribute("r", 3.5);
      mark.style.cssText = paths[i].style.cssText;
      return mark;
    });
    const drawn = paths.map((path) => {
      const own = [path]; // and the points behind it
      while (own.at(-1).nextElementSibling?.matches(".dot")) own.push(own.at(-1).nextElementSibling);
      return own;
    });
    const rest = buttons.map((button) => button.querySelector("b").textContent);
    const names = buttons.map((button, i) => button.textContent.slice(0, -rest[i].length).trim());
    const ends = about.lines.map((line) => [Math.min(...grids[line.x]), Math.max(...grids[line.x])]);
    // the abscissa that one steps along: that of the first line that is no minibatch's
    const main = Math.max(paths.findIndex((path) => !path.classList.contains("faint")), 0);
    const grid = grids[about.lines[main].x];

    const show = (value) => {
      const away = value === null;
      cross.classList.toggle("off", away);
      at.textContent = away ? "" : `${about.axis} ${value.toLocaleString("en")}`;
      if (!away) cross.setAttribute("d", `M${x(value).toFixed(1)} ${yEnd}V${yStart}`);
      const said = [];
      about.lines.forEach((line, i) => {
        const xs = grids[line.x];
        const near = away ? 0 : nearest(xs, value);
        const beyond = away || value < ends[i][0] || value > ends[i][1];
        const found = beyond ? null : line.y[near];
        const hidden = paths[i].classList.contains("off");
        buttons[i].querySelector("b").textContent = away ? rest[i] : shown(found);
        marks[i].classList.toggle("off", found === null || hidden || paths[i].classList.contains("faint"));
        if (found === null) return;
        marks[i].setAttribute("cx", x(xs[near]));
        marks[i].setAttribute("cy", y(found));
        if (!hidden) said.push(`${names[i]} ${shown(found)}`);
      });
      return said.join("; ");
    };
    let current = grid.length - 1;
    const go = (index) => {
      current = Math.max(0, Math.min(grid.length - 1, index));
      const value = grid[current];
      plot.setAttribute("aria-valuenow", value);
      group.forEach((other) => other.axis === about.axis && other.chart !== self && other.chart.show(value));
      plot.setAttribute("aria-valuetext", `${about.axis} ${value}: ${show(value)}`);
    };
    const leave = () => group.forEach((other) => other.chart.show(null));

    const follow = (event) => {
      const box = svg.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      go(nearest(grid, xLow + ((place - xStart) / (xEnd - xStart)) * (xHigh - xLow)));
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
    plot.addEventListener("blur", leave);
    plot.addEventListener("focus", () => plot.matches(":focus-visible") && go(current));
    plot.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(grid.length / 10));
      const moves = {
        ArrowLeft: current - 1, ArrowDown: current - 1, ArrowRight: current + 1, ArrowUp: current + 1,
        PageDown: current - page, PageUp: current + page, Home: 0, End: grid.length - 1,
      };
      if (event.key === "Escape") leave();
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      go(moves[event.key]);
    });
    Object.entries({
      role: "slider", tabindex: 0, "aria-label": title, "aria-valuemin": grid[0],
      "aria-valuemax": grid[grid.length - 1], "aria-valuenow": grid[current],
      "aria-valuetext": plot.getAttribute("aria-label"),
    }).forEach(([name, value]) => plot.setAttribute(name, value));

    buttons.forEach((button, i) => {
      button.disabled = false;
      button.title = "Hide or show this line";
      button.addEventListener("click", () => {
        const hidden = !paths[i].classList.contains("off");
        drawn[i].forEach((each) => each.classList.toggle("off", hidden));
        button.setAttribute("aria-pressed", String(!hidden));
        if (hidden) marks[i].classList.add("off");
      });
      const pick = (on) => {
        figure.classList.toggle("picked", on && buttons.length > 1);
        drawn[i].forEach((each) => each.classList.toggle("hot", on));
      };
      button.addEventListener("pointerenter", () => pick(true));
      button.addEventListener("pointerleave", () => pick(false));
    });
    const self = { show };
    return self;
  };

  for (const charts of document.querySelectorAll(".charts")) {
    const { grids, panels } = JSON.parse(charts.querySelector("script").textContent);
    const group = [];
    charts.querySelectorAll(".chart").forEach((figure, i) => {
      const entry = { axis: panels[i].axis, chart: null };
      group.push(entry);
      entry.chart = chart(figure, panels[i], grids, group);
    });
    charts.nextElementSibling.querySelector(".screen").hidden = false;
  }
})();
