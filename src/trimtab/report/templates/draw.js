"use strict";
// Draws every chart from the JSON beside it, in the colours of the page, and again when the page turns dark or light.
(function () {
  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }
  function themed(layout) {
    const copy = structuredClone(layout);
    copy.paper_bgcolor = copy.plot_bgcolor = "rgba(0,0,0,0)";
    copy.font = { color: colour("--ink"), family: "system-ui, sans-serif", size: 13 };
    for (const axis of ["xaxis", "yaxis"]) {
      copy[axis] = Object.assign({ gridcolor: colour("--line"), zerolinecolor: colour("--line") }, copy[axis]);
    }
    return copy;
  }
  function draw() {
    for (const script of document.querySelectorAll("script.chart-data")) {
      const chart = JSON.parse(script.textContent);
      const target = document.getElementById(script.dataset.for);
      Plotly.react(target, chart.data, themed(chart.layout), { displaylogo: false, responsive: true });
    }
    document.documentElement.dataset.drawn = "true";
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
