"use strict";
// The paired comparison of two models on the images they share.
rkhs.paired = {
  // The letters of `verdicts.states`: what counts as right, by part.
  right: { robust: "cs", certified: "c", clean: "bcsu" },

  // Whether each image is right, by index; null where that is not known.
  answers(data, part, eps) {
    const letters = Object.entries(data.states).find(([key]) => Number(key) === eps)?.[1];
    if (!letters) { return new Map(); }
    const known = (letter) => (part === "robust" && letter === "u" ? null : rkhs.paired.right[part].includes(letter));
    return new Map(data.index.map((index, at) => [index, known(letters[at])]));
  },

  // Counts of the images that both answered: both right, only the first, only the second, neither.
  counts(first, second) {
    const found = { both: 0, only_first: 0, only_second: 0, neither: 0, discordant: [] };
    for (const [index, a] of first) {
      const b = second.get(index);
      if (a === null || b === null || b === undefined) { continue; }
      found[a ? (b ? "both" : "only_first") : (b ? "only_second" : "neither")] += 1;
      if (a !== b) { found.discordant.push(index); }
    }
    found.images = found.both + found.only_first + found.only_second + found.neither;
    return found;
  },

  // The difference of two paired shares with its 95% interval (Bonett and Price, 2012: one more in each discordant cell).
  difference({ only_first: b, only_second: c, images }) {
    if (!images) { return null; }
    const p = (b + 1) / (images + 2), q = (c + 1) / (images + 2);
    const half = 1.959963984540054 * Math.sqrt((p + q - (p - q) ** 2) / (images + 2));
    return { share: (b - c) / images, low: Math.max(p - q - half, -1), high: Math.min(p - q + half, 1) };
  },

  // By model, the reasons why it cannot be compared with the first one at an eps; none where it can. As on boards, a diagnosis or
  // an audit that one of them lacks counts where the other went through it; null is what needs none. `aside`: by page, the status of
  // those that the board refuses or has only in part.
  unlike(models, eps, aside = {}) {
    const reasons = { attacks: "Attacked otherwise", sample: "Evaluated on other images" }, [first] = models;
    const checks = [["No diagnosis was run", "Diagnosed, which the first one was not"], ["Certified images were not audited", "Certified images were audited, which those of the first one were not"]];
    const ran = (one, at) => (one.checks.find(([key]) => key === eps) || [])[at + 1] ?? null;
    return models.map((one) => [
      ...Object.keys(reasons).filter((key) => one[key] !== first[key]).map((key) => reasons[key]),
      ...checks.flatMap(([missing, more], at) => {
        const [own, other] = [ran(one, at), ran(first, at)];
        return own === false && other ? [missing] : own && other === false ? [more] : [];
      }),
      ...(Object.hasOwn(aside, one.page) ? [`Not ranked, as it is ${aside[one.page]}`] : []),
      ...(one !== first && Object.hasOwn(aside, first.page) ? [`The first one is ${aside[first.page]}`] : []),
    ]);
  },

  // Exact McNemar: the two-sided binomial tail of the discordant images.
  mcnemar({ only_first: b, only_second: c }) {
    const n = b + c, least = Math.min(b, c);
    if (b === c) { return 1; }
    let log = -n * Math.LN2, tail = 0;
    for (let k = 0; k <= least; k += 1) {
      tail += Math.exp(log);
      log += Math.log(n - k) - Math.log(k + 1);
    }
    return Math.min(1, 2 * tail);
  },
};
