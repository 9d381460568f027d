const shown = 60;       // samples, one a second
const width = 96;
const height = 22;

export function Sparkline({ values, label }: { values: number[]; label: string }) {
  const last = values.slice(-shown);
  const top = Math.max(1, ...last);
  const x = (i: number) => width - 1.5 - ((last.length - 1 - i) * (width - 3)) / (shown - 1);
  const y = (value: number) => height - 2 - (value / top) * (height - 4);
  const line = last.map((value, i) => `${i === 0 ? "M" : "L"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  return (
    <svg class="sparkline" viewBox={`0 0 ${width} ${height}`} width={width} height={height} role="img" aria-label={label}>
      <path class="base" d={`M1.5 ${height - 0.5}H${width - 1.5}`} />
      {last.length > 1 && <path class="area" d={`${line}L${x(last.length - 1).toFixed(1)} ${height}L${x(0).toFixed(1)} ${height}z`} />}
      {last.length > 1 && <path class="line" d={line} />}
    </svg>
  );
}
