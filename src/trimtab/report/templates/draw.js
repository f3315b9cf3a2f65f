"use strict";
// Draws every chart from the JSON in its script element, in the colours of the page. Draws all charts again when the
// colour scheme changes.
(function () {
  // By default the mode bar has a "Share chart" button, which uploads the data in a new window, and a logo, which is a
  // link. The Content-Security-Policy stops neither. The buttons are listed here, so that another version of plotly
  // cannot add one.
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"]],
  };
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
      const config = { ...CONFIG, toImageButtonOptions: { filename: target.id } };
      Plotly.react(target, chart.data, themed(chart.layout), config);
    }
    document.documentElement.dataset.drawn = "true";
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
