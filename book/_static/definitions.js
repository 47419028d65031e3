// Links to the glossary show the definition on hover, on focus and at the first tap (book/_ext/definitions.py puts it
// into the link). Escape hides it; the pointer may rest on it.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const links = "a[data-definition]";
  const box = document.createElement("div");
  box.id = "definition";
  box.setAttribute("role", "tooltip");
  box.hidden = true;
  let shown = null;
  let leaving = 0;

  const hide = () => {
    clearTimeout(leaving);
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    box.hidden = true;
  };

  const show = (link) => {
    clearTimeout(leaving);
    if (shown === link) return;
    hide();
    shown = link;
    box.textContent = link.dataset.definition;
    link.after(box); // beside its link: inside the same landmark for who reads by ear
    link.setAttribute("aria-describedby", box.id);
    box.hidden = false;
    const [word, size] = [link.getClientRects()[0] || link.getBoundingClientRect(), box.getBoundingClientRect()];
    const below = word.bottom + 6;
    box.style.left = `${Math.max(8, Math.min(word.left, innerWidth - size.width - 8))}px`;
    box.style.top = `${below + size.height < innerHeight ? below : Math.max(8, word.top - size.height - 6)}px`;
  };

  const leave = () => (leaving = setTimeout(hide, 250));
  const found = (event) => event.target.closest && event.target.closest(links);

  document.addEventListener("mouseover", (event) => {
    if (found(event)) show(found(event));
    else if (event.target === box) clearTimeout(leaving);
    else if (shown && document.activeElement !== shown) leave();
  });
  document.addEventListener("focusin", (event) => (found(event) ? show(found(event)) : hide()));
  document.addEventListener("focusout", (event) => found(event) && hide());
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("scroll", hide, { passive: true });

  // A finger cannot hover: its first tap shows the definition, the second follows the link.
  let first = false;
  document.addEventListener("pointerdown", (event) => {
    first = event.pointerType === "touch" && Boolean(found(event)) && shown !== found(event);
  }, true);
  document.addEventListener("click", (event) => {
    if (!first || !found(event)) return;
    event.preventDefault();
    show(found(event));
  });
});
