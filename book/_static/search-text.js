// Excerpts of the search show mathematics as letters and signs, not as TeX: Sphinx's function that makes text of a page
// gets the page with its formulas replaced, and without what stands around the text.
"use strict";
{
  const readable = (tex) => {
    const text = tex.replace(/\\[()[\]]/g, "").trim();
    return /^[\w\s=+\-<>.,|/*()]{1,24}$/.test(text) ? text : "…";
  };

  const around = "#jb-print-docs-body, .bd-header-article, .bd-sidebar-secondary, .prev-next-footer, .bd-footer-content";

  // This listener stands before the one of searchtools.js, which starts the search.
  document.addEventListener("DOMContentLoaded", () => {
    if (typeof Search === "undefined") return;
    const original = Search.htmlToText;
    Search.htmlToText = (page, anchor) => {
      const parsed = new DOMParser().parseFromString(page, "text/html");
      for (const formula of parsed.querySelectorAll(".math")) formula.replaceWith(readable(formula.textContent));
      for (const part of parsed.querySelectorAll(around)) part.remove();
      return original(parsed.documentElement.outerHTML, anchor);
    };
  });
}
