// What is wider than its column scrolls in its own box. Such a box can be reached by keyboard, and fades at the side
// on which more follows (custom.css).
"use strict";
{
  // Tables and interactive figures bring boxes of their own, with -scroll in the name of a class. A wide equation scrolls
  // in the box that MathJax draws it in, which comes later and can be reached by keyboard as it is.
  const boxes = "pre, [class*='-scroll'], .cell_output > .output, div.math, div.math > mjx-container";

  const measure = (box) => {
    const more = box.scrollWidth - box.clientWidth;
    const scrolls = more > 1 && getComputedStyle(box).overflowX !== "visible";
    box.classList.toggle("more-left", scrolls && box.scrollLeft > 1);
    box.classList.toggle("more-right", scrolls && box.scrollLeft < more - 1);
    const focusable = scrolls || box.scrollHeight > box.clientHeight + 1;
    if (box.matches("mjx-container")) return;
    if (focusable) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  };

  // Printed lines without columns are read like prose: on a phone they break (custom.css), since what stands at their
  // end is the result. Where spaces align something, lines stay whole and the box scrolls.
  const columns = /\S {2,}\S/;
  const markProse = () => {
    for (const printed of document.querySelectorAll("article .cell_output pre")) {
      if (!columns.test(printed.textContent)) printed.classList.add("prose");
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    markProse();
    // A box is measured again whenever it or what it holds changes its width: solutions open, mathematics is drawn.
    const sizes = new ResizeObserver((entries) => {
      for (const { target } of entries) measure(target.closest(boxes) || target);
    });
    for (const box of document.querySelectorAll(`article :is(${boxes})`)) {
      sizes.observe(box);
      for (const child of box.children) sizes.observe(child);
      new MutationObserver(() => {
        for (const child of box.children) sizes.observe(child);
        measure(box);
      }).observe(box, { childList: true });
      const scrolled = ({ target }) => measure(target.closest(boxes));
      box.addEventListener("scroll", scrolled, { passive: true, capture: true });
    }
  });
}
