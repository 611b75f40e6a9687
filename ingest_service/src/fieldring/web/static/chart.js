"use strict";
// Draws one metric of one sensor from /v1/points; flagged points carry a mark of their own shape, so
// that colour alone says nothing.
(() => {
  const chart = document.getElementById("chart");
  const status = document.getElementById("chart-status");
  const reading = document.getElementById("reading");
  const hint = reading.textContent;
  const PAGE = 20000;
  const MOST = 200000;
  const SUSPECT = 3, FAIL = 4, NOT_EVALUATED = 2;

  document.querySelectorAll(".choose select").forEach((each) => {
    each.addEventListener("change", () => each.form.submit());
  });

  async function load() {
    const points = [];
    let next = null;
    do {
      const query = new URLSearchParams({
        sensor: chart.dataset.sensor, metric: chart.dataset.metric,
        start: chart.dataset.start, end: chart.dataset.end, limit: PAGE,
      });
      if (next !== null) query.set("cursor", next);
      const answer = await fetch("/v1/points?" + query, { credentials: "same-origin" });
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.message);
      points.push(...body.points.filter((point) => typeof point.value === "number"));
      next = body.next;
      status.textContent = `Loading … ${points.length} points`;
    } while (next !== null && points.length < MOST);
    return { points, cut: next !== null };
  }

  // A line over a gap would show what nobody measured: three usual steps without a value break it.
  function rows(points) {
    const times = points.map((point) => Date.parse(point.time));
    const steps = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b);
    const usual = steps.length ? steps[steps.length >> 1] : 0;
    const result = [];
    const flags = [];
    points.forEach((point, i) => {
      if (i && usual && times[i] - times[i - 1] > 3 * usual) {
        result.push([new Date(times[i - 1] + usual), null]);
        flags.push(null);
      }
      result.push([new Date(times[i]), point.value]);
      flags.push(point.flag);
    });
    return { result, flags };
  }

  function mark(context, x, y, flag) {
    context.save();
    context.lineWidth = 1.5;
    context.beginPath();
    if (flag === SUSPECT) {
      context.fillStyle = "#f0a030";
      context.strokeStyle = "#b35c00";
      context.moveTo(x, y - 6);
      context.lineTo(x + 6, y + 5);
      context.lineTo(x - 6, y + 5);
      context.closePath();
      context.fill();
    } else if (flag === FAIL) {
      context.strokeStyle = "#c01f2e";
      context.lineWidth = 2.5;
      context.moveTo(x - 5, y - 5);
      context.lineTo(x + 5, y + 5);
      context.moveTo(x + 5, y - 5);
      context.lineTo(x - 5, y + 5);
    } else {
      context.fillStyle = "#fff";
      context.strokeStyle = "#51646d";
      context.arc(x, y, 3, 0, 2 * Math.PI);
      context.fill();
    }
    context.stroke();
    context.restore();
  }

  function count(points, flag) {
    return points.filter((point) => point.flag === flag).length;
  }

  function draw({ points, cut }) {
    const { result, flags } = rows(points);
    chart.dataset.state = "drawing";
    if (result.length) {
      // The built-in legend sets style attributes, even unused, which our content policy forbids.
      Dygraph.PLUGINS = Dygraph.PLUGINS.filter((plugin) => plugin !== Dygraph.Plugins.Legend);
      new Dygraph(chart, result, {
        labels: ["time", chart.dataset.metric],
        ylabel: chart.dataset.metric.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]),
        colors: ["#1f5fa8"],
        strokeWidth: 1.5,
        labelsUTC: true,
        legend: "never",
        xRangePad: 8,
        gridLineColor: "#e3eaec",
        axisLineColor: "#8b9aa1",
        drawPoints: true,
        pointSize: 3,
        // Marks go last, above the line; unmarked points stay undrawn.
        drawPointCallback: (graph, name, context, x, y, color, size, row) => {
          if ([SUSPECT, FAIL].includes(flags[row])) mark(context, x, y, flags[row]);
          else if (flags[row] === NOT_EVALUATED && result.length < 3000) mark(context, x, y, NOT_EVALUATED);
        },
        highlightCircleSize: 4,
        highlightCallback: (event, x, found, row) => {
          const value = found.length ? found[0].yval : null;
          if (value === null || Number.isNaN(value)) return;
          const time = new Date(x).toISOString().replace("T", " ").replace("Z", "");
          reading.textContent = `${time}: ${value}, flag ${flags[row]}`;
        },
        unhighlightCallback: () => { reading.textContent = hint; },
      });
    }
    chart.dataset.points = points.length;
    chart.dataset.suspect = count(points, SUSPECT);
    chart.dataset.fail = count(points, FAIL);
    chart.dataset.state = "ready";
    status.textContent = points.length
      ? `${points.length} points${cut ? " (the first of more: choose a shorter range)" : ""}, ` +
        `${chart.dataset.suspect} suspect, ${chart.dataset.fail} fail, ` +
        `${count(points, NOT_EVALUATED)} not evaluated`
      : "No numbers in this range.";
  }

  status.textContent = "Loading …";
  load().then(draw).catch((error) => {
    chart.dataset.state = "failed";
    status.textContent = `The chart cannot be shown: ${error.message}`;
  });
})();
