import { useEffect, useReducer, useState } from "preact/hooks";
import type { Store } from "./store";

// Draws again when the store has changed, at most once a frame (never while the page is hidden).
export function useStore(store: Store): number {
  const [, redraw] = useReducer<number, void>((n) => n + 1, 0);
  useEffect(() => {
    let frame = 0;
    const stop = store.subscribe(() => {
      if (frame === 0)
        frame = requestAnimationFrame(() => {
          frame = 0;
          redraw();
        });
    });
    redraw();
    return () => {
      stop();
      cancelAnimationFrame(frame);
    };
  }, [store]);
  return store.version;
}

// The time, a tick a second: for durations that count on.
export function useNow(): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}

// The job in the address ("#/jobs/12"), so that a reload or a link shows it again.
export function useSelectedJob(): [number | null, (id: number | null) => void] {
  const read = () => {
    const found = /^#\/jobs\/(\d+)$/.exec(location.hash);
    return found ? Number(found[1]) : null;
  };
  const [id, setId] = useState(read);
  useEffect(() => {
    const onChange = () => setId(read());
    addEventListener("hashchange", onChange);
    return () => removeEventListener("hashchange", onChange);
  }, []);
  const select = (next: number | null) => {
    history.replaceState(null, "", next === null ? "#/" : `#/jobs/${next}`);
    setId(next);
  };
  return [id, select];
}
