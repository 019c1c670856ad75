// What a page does beyond HTML: explanations stand beside their terms, and print shows what is folded.
(() => {
  "use strict";
  const place = (term) => {
    const about = term.querySelector(".about");
    term.classList.remove("quiet");
    const width = Math.min(416, innerWidth - 16);
    about.style.width = `${width}px`;
    const at = term.firstChild.getBoundingClientRect();
    const height = about.offsetHeight;
    const below = at.bottom + 6 + height <= innerHeight || at.top < height + 6;
    Object.assign(about.style, {
      left: `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`,
      right: "auto",
      bottom: "auto",
      top: `${below ? at.bottom + 6 : at.top - height - 6}px`,
    });
  };
  const terms = document.querySelectorAll(".term");
  for (const term of terms) {
    term.addEventListener("pointerenter", () => place(term));
    term.addEventListener("focusin", () => place(term));
  }
  const quiet = () => terms.forEach((term) => term.classList.add("quiet"));
  addEventListener("keydown", (event) => event.key === "Escape" && quiet());
  addEventListener("scroll", quiet, { passive: true, capture: true });

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((each) => (each.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
})();
