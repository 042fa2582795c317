"use strict";
// Percentile and z-score of a count among people of the same age and sex, as
// cmb_bids.statistics.reference.place_on_reference has them.
(function () {
  // Normal quantile; P. J. Acklam's rational approximation, relative error below 1.2e-9.
  function normalQuantile(p) {
    const a = [-39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269,
      -30.66479806614716, 2.506628277459239];
    const b = [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972,
      -13.28068155288572, 1];
    const c = [-0.007784894002430293, -0.3223964580411365, -2.400758277161838,
      -2.549732539343734, 4.374664141464968, 2.938163982698783];
    const d = [0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1];
    const sum = (terms, x) => terms.reduce((total, term) => total * x + term, 0);
    if (p <= 0) return -Infinity;
    if (p >= 1) return Infinity;
    if (p > 0.97575) return -normalQuantile(1 - p);
    if (p < 0.02425) {
      const q = Math.sqrt(-2 * Math.log(p));
      return sum(c, q) / sum(d, q);
    }
    const q = p - 0.5;
    return (q * sum(a, q * q)) / sum(b, q * q);
  }

  // Positions in the table of the ages on either side, or null where one is missing.
  function findAges(bySex, age) {
    const below = bySex.ages.indexOf(Math.floor(age));
    const above = bySex.ages.indexOf(Math.ceil(age));
    return below < 0 || above < 0 ? null : [below, above];
  }

  function findPosition(bySex, age, count) {
    const around = findAges(bySex, age);
    const weight = age - Math.floor(age);
    const shares = around.map((place) => bySex.cumulative[place]);
    const between = (low, high) => low + weight * (high - low);
    const last = (s, k) => s[Math.min(k, s.length - 1)];
    const fewer = count === 0 ? 0 : between(...shares.map((s) => last(s, count - 1)));
    const upTo = between(...shares.map((s) => (count < s.length ? s[count] : 1)));
    const percentile = fewer + (upTo - fewer) / 2;
    return {
      fewer: fewer,
      asMany: upTo - fewer,
      percentile: percentile,
      z: normalQuantile(percentile),
      beyond: shares.every((s) => count >= s.length),
      near: bySex.near[around[weight < 0.5 ? 0 : 1]],
    };
  }

  function problemWith(bySex, age, count) {
    const [first, last] = [bySex.ages[0], bySex.ages[bySex.ages.length - 1]];
    if (!Number.isFinite(age) || age < first || age > last) {
      return `No answer: for ${bySex.name} the data reach from ${first} to ${last} years.`;
    }
    if (!findAges(bySex, age)) {
      return `No answer: too few ${bySex.name} of about this age were seen.`;
    }
    if (!Number.isInteger(count) || count < 0) {
      return "No answer: the count is a whole number, zero or more.";
    }
    return null;
  }

  function percent(share) {
    return `${(100 * share).toFixed(1)} %`;
  }

  function describe(bySex, age, count) {
    const problem = problemWith(bySex, age, count);
    if (problem) return problem;
    const at = findPosition(bySex, age, count);
    const most = 3.5;
    const bound = at.beyond || at.z > most;
    const z = Math.min(at.z, most).toFixed(2).replace("-", "\u2212");
    let text = `${count} at ${age} years, ${bySex.name}: percentile ` +
      `${bound ? "above " : ""}${Math.min(100 * at.percentile, 99.9).toFixed(1)}, ` +
      `z-score ${bound ? "above " : ""}${z}. `;
    text += `By the model ${percent(at.fewer)} have fewer, ${percent(at.asMany)} as many, ` +
      `${percent(Math.max(0, 1 - at.fewer - at.asMany))} more.`;
    if (at.near !== null && at.near !== undefined) {
      text += ` Participants of about this age and sex behind it: ${at.near}`;
      text += at.near < 30 ? ", which is few: the answer is uncertain." : ".";
    }
    return text + " This is no diagnosis.";
  }

  window.cmbCalculator = { normalQuantile, findPosition, describe };
  const root = document.getElementById("burden-calculator");
  if (!root) return;
  const table = JSON.parse(document.getElementById("burden-calculator-data").textContent);
  const form = root.querySelector("form");
  table.forEach((bySex, index) => form.elements.sex.add(new Option(bySex.name, index)));
  form.noValidate = true;
  form.addEventListener("submit", function (event) {
    event.preventDefault();
    const fields = form.elements;
    const read = (field) => (field.value.trim() === "" ? NaN : Number(field.value));
    root.querySelector("output").textContent =
      describe(table[fields.sex.value], read(fields.age), read(fields.count));
  });
})();
