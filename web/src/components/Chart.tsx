import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { bytes, clock, count } from "../format";
import type { Rates } from "../store";

// Calls and bytes per second of the last minutes.
export function Chart({ rates }: { rates: Rates }) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);

  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const make = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(element), data(rates), element);
    };
    make();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", make);
    const watcher = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: chartHeight }));
    watcher.observe(element);
    return () => {
      watcher.disconnect();
      dark.removeEventListener("change", make);
      plot.current?.destroy();
      plot.current = null;
    };
  }, [rates]);
  useEffect(() => plot.current?.setData(data(rates)));
  return <div class="chart" ref={box} />;
}

const chartHeight = 150;   // px

const data = (rates: Rates): uPlot.AlignedData => [rates.at, rates.calls, rates.out, rates.in];

function options(element: HTMLElement): uPlot.Options {
  const style = getComputedStyle(element);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, font: "11px system-ui, sans-serif" };
  return {
    width: element.clientWidth, height: chartHeight,
    cursor: { y: false },
    scales: { calls: { range: (_, __, top) => [0, Math.max(1, top * 1.05)] }, bytes: { range: (_, __, top) => [0, Math.max(1000, top * 1.05)] } },
    axes: [
      { ...axis, space: 70, values: (_, ticks) => ticks.map((at) => clock(at * 1000, Date.now())) },
      { ...axis, scale: "calls", size: 52, values: (_, ticks) => ticks.map(count) },
      { ...axis, scale: "bytes", side: 1, size: 62, grid: { show: false }, values: (_, ticks) => ticks.map(bytes) },
    ],
    series: [
      { label: "at", value: (_, at) => (at === null ? "–" : clock(at * 1000, Date.now())) },
      { label: "calls/s", scale: "calls", stroke: colour("--busy"), width: 1.5, points: { show: false }, value: (_, value) => (value === null ? "–" : count(value)) },
      { label: "to worker", scale: "bytes", stroke: colour("--second"), width: 1.2, points: { show: false }, value: (_, value) => (value === null ? "–" : `${bytes(value)}/s`) },
      { label: "from worker", scale: "bytes", stroke: colour("--third"), width: 1.2, points: { show: false }, value: (_, value) => (value === null ? "–" : `${bytes(value)}/s`) },
    ],
  };
}
