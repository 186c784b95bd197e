"use strict";
// The compare page: data set and models are chosen, everything else follows; the choice is kept in the address.
(function () {
  const { places } = rkhs.data.models, { specs } = rkhs.data, of = (id) => document.getElementById(id), text = DataTable.render.text();
  const words = { w: "wrong", b: "broken", c: "certified", s: "survived", u: "untested" };
  const axes = { clean: "clean accuracy", robust: "robust accuracy", certified: "certified accuracy", cost: "training cost (s)", parameters: "parameters" };
  const given = rkhs.state(), keys = Object.keys(places);
  if (!keys.length) { of("told").textContent = "No evaluations yet."; return; }
  const narrow = matchMedia("(max-width: 640px)").matches;
  let chosen = (given.get("m") || "").split(",").filter(Boolean), table = null, drawing = 0;

  const option = (value, words_) => rkhs.element("option", { value }, words_);
  keys.forEach((key) => of("place").append(option(key, `${places[key].title} (${places[key].models.length} ${places[key].models.length === 1 ? "model" : "models"})`)));
  const holding = keys.find((key) => places[key].models.some((one) => chosen.includes(one.page)));
  of("place").value = keys.includes(given.get("d")) ? given.get("d") : holding || keys[0];
  for (const [axis, title] of Object.entries(axes)) { of("x").append(option(axis, title)); of("y").append(option(axis, title)); }
  of("x").value = Object.hasOwn(axes, given.get("x")) ? given.get("x") : "clean";
  of("y").value = Object.hasOwn(axes, given.get("y")) ? given.get("y") : "robust";
  if (["robust", "certified", "clean"].includes(given.get("part"))) { of("part").value = given.get("part"); }

  const here = () => places[of("place").value];
  const eps = () => Number(of("eps").value);

  function listed() {
    const place = here();
    chosen = chosen.filter((page) => place.models.some((one) => one.page === page));
    if (!chosen.length) { chosen = place.models.slice(0, 2).map((one) => one.page); }
    of("eps").replaceChildren(...place.boards.map((board) => option(String(board.eps), board.text)));
    const wanted = place.boards.find((board) => board.eps === Number(given.get("eps")));
    if (wanted) { of("eps").value = String(wanted.eps); }
    found();
  }

  function found() {
    const word = of("find").value.toLowerCase(), place = here();
    const shown = place.models.filter((one) => chosen.includes(one.page) || one.name.toLowerCase().includes(word)).slice(0, 60);
    of("models").replaceChildren(...shown.map((one) => {
      const box = rkhs.element("input", { type: "checkbox", checked: chosen.includes(one.page) });
      box.addEventListener("change", () => {
        chosen = box.checked ? [...chosen, one.page] : chosen.filter((page) => page !== one.page);
        draw();
      });
      return rkhs.element("label", {}, box, ` ${one.name} (${one.images} images)`);
    }));
  }

  async function draw() {
    const place = here(), mine = (drawing += 1);
    const models = chosen.map((page) => place.models.find((one) => one.page === page));
    rkhs.keep(new URLSearchParams({ d: of("place").value, m: chosen.join(","), eps: of("eps").value, part: of("part").value, x: of("x").value, y: of("y").value }));
    await rkhs.load(models.map((one) => [one.stem, `data/${one.stem}.js`]));
    if (mine !== drawing) { return; }
    const data = models.map((one) => rkhs.data[one.stem]);
    const more = ["Choose a model, and another one to compare it with.", "One model is chosen: choose another one to compare it with."];
    of("told").textContent = more[models.length] || `${models.length} models chosen.`;
    document.querySelectorAll("[data-least]").forEach((part) => { part.hidden = models.length < Number(part.dataset.least); });
    if (!models.length) { warned([], []); await tradeoff(place); return; }
    const curves = JSON.parse(JSON.stringify(specs.curves[place.norm])), largest = Math.max(...data.flatMap((one) => one.eps.map(([at]) => at)));
    curves.layer.filter((layer) => narrow && layer.encoding.color).forEach((layer) => { layer.encoding.color.legend = { ...layer.encoding.color.legend, columns: 1 }; });
    curves.layer.forEach((layer) => { layer.encoding.x.scale = { nice: false, domain: [0, 1.03 * (largest || 1)] }; });
    await rkhs.draw(of("chart"), curves, {
      steps: data.flatMap((one) => one.steps.map(([at, certified, broken]) => ({ eps: at, certified, broken, model: one.model }))),
      points: data.flatMap((one) => one.points.map((point) => ({ ...point, model: one.model }))),
    });
    const reasons = rkhs.paired.unlike(models, eps(), place.boards.find((one) => one.eps === eps())?.aside);
    warned(models, reasons);
    paired(data, reasons);
    await tradeoff(place);
  }

  function warned(models, reasons) {
    const having = (reason) => models.filter((_, at) => reasons[at].includes(reason)).map((one) => one.name);
    const told = [...new Set(reasons.flat())].map((reason) => `${reason}: ${having(reason).join(", ")}.`);
    of("unlike").hidden = !told.length;
    if (!told.length) { return; }
    of("unlike").textContent = `Not comparable with ${models[0].name}. ${told.join(" ")} Differences may come from that, not from the models, so no p is given.`;
  }

  // reasons: by model, why it cannot be compared with the first one
  function paired(data, reasons) {
    const part = of("part").value, head = ["First", "Second", "Images", "Both", "Only the first", "Only the second", "Neither", "Difference [95%]", "p"];
    const answers = data.map((one) => rkhs.paired.answers(one, part, eps()));
    const percent = (share) => (100 * share).toFixed(1), discordant = new Set();
    const rows = data.slice(1).map((one, at) => {
      const counts = rkhs.paired.counts(answers[0], answers[at + 1]), difference = rkhs.paired.difference(counts);
      counts.discordant.forEach((index) => discordant.add(index));
      const said = difference ? `${percent(difference.share)} [${percent(difference.low)}, ${percent(difference.high)}]` : "no image in common";
      const p = reasons[at + 1].length ? "not comparable" : counts.images ? rkhs.paired.mcnemar(counts).toPrecision(2) : "-";
      return [data[0].model, one.model, counts.images, counts.both, counts.only_first, counts.only_second, counts.neither, said, p];
    });
    const cell = (name, value, at) => rkhs.element(name, { ...(name === "th" ? { scope: "col" } : {}), ...(at > 1 ? { class: "number" } : {}) }, String(value));
    of("pairs").replaceChildren(
      rkhs.element("caption", {}, "Differences in percentage points"),
      rkhs.element("thead", {}, rkhs.element("tr", {}, ...head.map((word, at) => cell("th", word, at)))),
      rkhs.element("tbody", {}, ...rows.map((row) => rkhs.element("tr", {}, ...row.map((value, at) => cell("td", value, at))))),
    );
    images(data, [...discordant].sort((a, b) => a - b));
  }

  function images(data, discordant) {
    if (table) { table.destroy(true); }
    const place = rkhs.element("table", {}, rkhs.element("caption", {}, `${discordant.length} images on which the first model and another one differ`));
    of("images").append(place);
    const where = data.map((one) => new Map(one.index.map((index, at) => [index, at])));
    const state = (one, at) => (at === undefined ? "" : words[Object.entries(one.states).find(([key]) => Number(key) === eps())?.[1][at]] || "");
    const interval = (one, at) => (at === undefined ? "" : `${radius(one.certified[at], Math.floor)} to ${one.broken[at] === null ? "none known" : radius(one.broken[at], Math.ceil)}`);
    table = new DataTable(place, {
      data: discordant.map((index) => [index, ...data.flatMap((one, which) => { const at = where[which].get(index); return [state(one, at), interval(one, at)]; })]),
      columns: [{ title: "Image", className: "number" }, ...data.flatMap((one) => [{ title: text.display(one.model), render: text }, { title: "certified radius to broken at", render: text }])],
      autoWidth: false, deferRender: true, pageLength: 25, order: [],
      layout: { topStart: null, topEnd: "search", bottomStart: "info", bottomEnd: "paging" },
      language: { search: "Search: ", info: "_START_ to _END_ of _TOTAL_ images", emptyTable: "They differ on no image." },
    });
  }

  // Four digits of a radius: a proved one rounded down, the distance of an image that broke it up, so that both stay true.
  function radius(value, rounded) {
    if (!value) { return "0"; }
    const power = Math.floor(Math.log10(value)) - 3, digits = value / 10 ** power, near = Math.round(digits);
    const whole = Math.abs(digits - near) < 1e-6 ? near : rounded(digits);
    const short = Number(`${whole}e${power}`);
    return short < 1e-3 ? short.toExponential() : String(short);
  }

  async function tradeoff(place) {
    const board = place.boards.find((one) => one.eps === eps()), x = of("x").value, y = of("y").value;
    const costs = new Map(place.models.map((one) => [one.page, one]));
    const points = (board ? board.rows : []).map(([page, clean, robust, certified]) => {
      const one = costs.get(page) || {}, row = { clean, robust, certified, cost: one.cost, parameters: one.parameters };
      return { model: one.name || page, x: row[x], y: row[y] };
    }).filter((one) => typeof one.x === "number" && typeof one.y === "number");
    of("ranked").hidden = points.length < 2;
    if (points.length < 2) { return; }
    const small = (axis) => axis === "cost" || axis === "parameters", better = (a, b, axis) => (small(axis) ? a <= b : a >= b);
    const front = points.filter((one) => !points.some((other) => better(other.x, one.x, x) && better(other.y, one.y, y) && (other.x !== one.x || other.y !== one.y)));
    const alike = Map.groupBy ? [...Map.groupBy(points, (one) => `${one.x} ${one.y}`).values()] : points.map((one) => [one]);
    const named = alike.map((group) => ({ ...group[0], model: group.map((one) => one.model).join(", ") }));
    const spec = JSON.parse(JSON.stringify(specs.tradeoff));
    spec.layer.forEach((layer) => [["x", x], ["y", y]].forEach(([side, axis]) => {
      layer.encoding[side] = { ...layer.encoding[side], title: axes[axis], axis: { tickCount: 6, ...(small(axis) ? {} : { format: ".1%" }) } };
    }));
    await rkhs.draw(of("front"), spec, { models: named, front: front.map((one) => ({ x: one.x, y: one.y })).sort((a, b) => a.x - b.x) });
  }

  document.querySelectorAll(".save").forEach((button) => button.addEventListener("click", async () => {
    const svg = of(button.dataset.chart).querySelector("svg");
    if (!svg) { return; }
    const copy = new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" });
    const link = rkhs.element("a", { href: URL.createObjectURL(copy), download: `${button.dataset.chart}.svg` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }));
  of("place").addEventListener("change", () => { chosen = []; listed(); draw(); });
  of("find").addEventListener("input", found);
  ["eps", "part", "x", "y"].forEach((id) => of(id).addEventListener("change", draw));
  rkhs.follow();
  listed();
  draw();
})();
