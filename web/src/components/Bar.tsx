// Use of slots: each slot a cell while they can be told apart, else one bar.
const mostCells = 32;

export function Bar({ used, all, label, cells = true }: { used: number; all: number; label: string; cells?: boolean }) {
  const share = all > 0 ? Math.min(1, used / all) : 0;
  return (
    <span class="bar" role="meter" aria-label={label} aria-valuemin={0} aria-valuemax={all} aria-valuenow={used}
      title={`${label}: ${used} of ${all} slots in use`}>
      {cells && all > 0 && all <= mostCells
        ? Array.from({ length: all }, (_, i) => <i key={i} class={i < used ? "on" : ""} />)
        : <b style={{ width: `${share * 100}%` }} />}
    </span>
  );
}
