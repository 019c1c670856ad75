// What a page does beyond HTML: explanations stand beside their terms, and print shows what is folded.
(() => {
  "use strict";
  const place = (term) => {
    const about = term.querySelector(".about");
    term.classList.remove("quiet");
    const width = Math.min(416, innerWidth - 16);
    about.style.width = `${width}px`;
    const at = term.firstChild.getBoundingClientRect();
    // measured before the browser knows that one hovers or has touched
    about.style.display = "block";
    const height = about.offsetHeight;
    about.style.display = "";
    // above, where it hides no number, unless the contents are in the way
    const above = at.top - height - 6 > 44;
    Object.assign(about.style, {
      left: `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`,
      right: "auto",
      bottom: "auto",
      top: `${above ? at.top - height - 6 : at.bottom + 6}px`,
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
