"use strict";
// Before anything is drawn: the theme that was chosen last, else that of the system.
(function () {
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch { /* storage may be off for pages from disk */ }
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = chosen === "dark" || chosen === "light" ? chosen : system;
  document.documentElement.classList.add("scripted");
})();
