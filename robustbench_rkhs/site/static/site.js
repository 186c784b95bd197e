"use strict";
// What all pages share: the theme, the data of script files, and a page's state in its address.
var rkhs = {
  data: {},
  listeners: [],

  theme() { return document.documentElement.dataset.theme; },

  // The script files of data that are wanted, one after the other; resolved when all are there.
  load(files) {
    return Promise.all(files.filter(([key]) => !(key in rkhs.data)).map(([key, url]) => new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = url;
      script.onload = () => done(key);
      script.onerror = () => failed(new Error(`cannot load ${url}`));
      document.head.append(script);
    })));
  },

  // The state of a page is the part of its address behind #, so that a link keeps it.
  state() {
    rkhs.kept = location.hash.slice(1);
    return new URLSearchParams(rkhs.kept);
  },
  keep(state) {
    const text = state.toString();
    rkhs.kept = text;
    if (text !== location.hash.slice(1)) { history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search); }
  },

  // Another state that comes by the address, such as a link pasted into this tab, is shown as in a new tab; anchors are no states.
  follow() {
    addEventListener("hashchange", () => {
      const hash = location.hash.slice(1);
      if (hash !== rkhs.kept && !document.getElementById(hash)) { location.reload(); }
    });
  },

  element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) { made.addEventListener(key.slice(2), value); }
      else if (typeof value === "boolean") { made[key] = value; }
      else { made.setAttribute(key, value); }
    }
    made.append(...children);
    return made;
  },

  percent(share) { return share === null || share === undefined ? "withheld" : `${(100 * share).toFixed(1)}%`; },

  // Vega's colours on either background.
  config() {
    const ink = rkhs.theme() === "dark" ? "#e8e8e8" : "#1c1c1c", grid = rkhs.theme() === "dark" ? "#3a3f45" : "#e3e3e3";
    const words = { labelColor: ink, titleColor: ink };
    return {
      background: "transparent", font: "system-ui, sans-serif", view: { stroke: "transparent" },
      axis: { ...words, gridColor: grid, domainColor: ink, tickColor: ink, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
      legend: { ...words, labelFontSize: 12, titleFontSize: 12 }, title: { color: ink }, text: { color: ink },
    };
  },

  // An axis has words for a whole screen; on a phone, for as many as lie apart there.
  narrow: matchMedia("(max-width: 640px)").matches,
  fitted(spec) {
    const most = 5, axes = spec.layer.map((layer) => layer.encoding.x?.axis).filter((axis) => axis?.tickCount > most);
    if (rkhs.narrow) { axes.forEach((axis) => { axis.tickCount = most; }); }
    return spec;
  },

  // `ast`: expressions are interpreted, so that a host may forbid scripts made of text (CSP without unsafe-eval).
  draw(place, spec, datasets) {
    const dark = { "#0072B2": "#5ab4ea", "#000000": "#f0f0f0", "#8C1C4B": "#e884ae", "#5B3FBF": "#b3a1f2" };
    const coloured = () => {
      const text = JSON.stringify(spec);
      return JSON.parse(rkhs.theme() === "dark" ? Object.entries(dark).reduce((one, [from, to]) => one.replaceAll(from, to), text) : text);
    };
    const again = () => vegaEmbed(place, { ...rkhs.fitted(coloured()), datasets, config: rkhs.config() }, {
      ast: true, actions: false, renderer: "svg", tooltip: { theme: rkhs.theme() },
    });
    place.redraw = again;
    return again();
  },
};

(function () {
  const button = document.getElementById("theme");
  const told = () => {
    const dark = rkhs.theme() === "dark";
    button.textContent = dark ? "Light mode" : "Dark mode";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = rkhs.theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", rkhs.theme()); } catch { /* as in theme.js */ }
    told();
    document.querySelectorAll(".chart").forEach((place) => { if (place.redraw) { place.redraw(); } });
  });
  told();
})();
