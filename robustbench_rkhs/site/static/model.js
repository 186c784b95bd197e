"use strict";
// A model's page: its curve, and its images as a table that sorts by radius; search and order are kept in the address.
(function () {
  const words = { w: "wrong", b: "broken", c: "certified", s: "survived", u: "untested" };
  const text = DataTable.render.text(), given = rkhs.state();
  const first = ["broken", "asc"], kept = [];
  rkhs.follow();
  for (const [turn, section] of [...document.querySelectorAll(".domain")].entries()) {
    const data = rkhs.data[section.dataset.stem], named = { model: data.model }, chart = section.querySelector(".chart");
    const end = turn ? String(turn + 1) : "";  // of the names in the address: q and sort, then q2 and sort2
    const keys = ["image", "class", "predicted", "certified", "certified_by", "broken", "broken_by", ...data.eps.map(([, typed]) => `at_${typed}`)];
    const [sorted, way] = given.has(`sort${end}`) ? given.get(`sort${end}`).split(":") : first;
    if (chart) { rkhs.draw(chart, JSON.parse(section.dataset.spec), {
      steps: data.steps.map(([eps, certified, broken]) => ({ eps, certified, broken, ...named })),
      points: data.points.map((point) => ({ ...point, ...named })),
    }); }
    const place = rkhs.element("table", {}, rkhs.element("caption", {}, "Images: largest proved radius and nearest adversarial example"));
    section.querySelector(".images").append(place);
    const rows = data.index.map((_, at) => at);
    const number = (values, none) => ({
      className: "number",
      render: (at, kind) => (values[at] === null ? (kind === "sort" || kind === "type" ? Infinity : none) : values[at]),
    });
    const said = (values) => ({ render: (at, kind) => text.display(values(at)) });
    const table = new DataTable(place, {
      data: rows.map((at) => [at]),
      autoWidth: false, deferRender: true, pageLength: 25, lengthMenu: [25, 100, 500],
      order: keys.includes(sorted) ? [[keys.indexOf(sorted), way === "desc" ? "desc" : "asc"]] : [],
      columns: [
        { title: "Image", ...number(data.index) },
        { title: "Class", ...number(data.label) },
        { title: "Predicted", ...number(data.predicted) },
        { title: "Certified radius", ...number(data.certified) },
        { title: "by", ...said((at) => data.certificates[data.proved_by[at]]) },
        { title: "Broken at", className: "number", render: broken },
        { title: "by", ...said((at) => data.attacks[data.broken_by[at]]) },
        ...data.eps.map(([eps, typed]) => ({ title: `at ${typed}`, ...said((at) => words[states(eps)[at]]) })),
      ].map((column) => ({ data: 0, ...column })),
      search: { search: given.get(`q${end}`) || "" },
      layout: { topStart: null, topEnd: "search", bottomStart: "info", bottomEnd: ["pageLength", "paging"] },
      language: { search: "Search: ", info: "_START_ to _END_ of _TOTAL_ images", infoFiltered: "(of _MAX_)" },
    });
    kept.push((state) => {
      const [one] = table.order(), order = one && one[1] ? [keys[one[0]], one[1]] : ["none"];
      if (table.search()) { state.set(`q${end}`, table.search()); }
      if (order.join() !== first.join()) { state.set(`sort${end}`, order.join(":")); }
    });
    table.on("draw.dt", () => {
      const state = new URLSearchParams();
      kept.forEach((add) => add(state));
      rkhs.keep(state);
    });
    // images that are wrong as they are come last: they cannot fall
    function broken(at, kind) {
      const sorting = kind === "sort" || kind === "type";
      if (data.label[at] !== data.predicted[at]) { return sorting ? Infinity : 0; }
      return data.broken[at] === null ? (sorting ? 1e300 : "none known") : data.broken[at];
    }
    function states(eps) {
      return Object.entries(data.states).find(([key]) => Number(key) === eps)[1];
    }
  }
})();
