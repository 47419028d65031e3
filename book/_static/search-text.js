// Excerpts of the search show mathematics as letters and signs, not as TeX: Sphinx's function that makes text of a page
// gets the page with its formulas replaced.
"use strict";
{
  const readable = (tex) => {
    const text = tex.replace(/\\[()[\]]/g, "").trim();
    return /^[\w\s=+\-<>.,|/*()]{1,24}$/.test(text) ? text : "…";
  };

  // This listener stands before the one of searchtools.js, which starts the search.
  document.addEventListener("DOMContentLoaded", () => {
    if (typeof Search === "undefined") return;
    const original = Search.htmlToText;
    Search.htmlToText = (page, anchor) => {
      const parsed = new DOMParser().parseFromString(page, "text/html");
      for (const formula of parsed.querySelectorAll(".math")) formula.replaceWith(readable(formula.textContent));
      return original(parsed.documentElement.outerHTML, anchor);
    };
  });
}
