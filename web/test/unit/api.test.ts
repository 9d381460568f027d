import { afterEach, describe, expect, it, vi } from "vitest";
import { watch } from "../../src/api";
import { Store } from "../../src/store";

class RefusedSource {
  static CLOSED = 2;
  static opened: RefusedSource[] = [];
  readyState = RefusedSource.CLOSED;
  onerror: (() => void) | null = null;
  constructor(readonly url: string) { RefusedSource.opened.push(this); }
  addEventListener(): void {}
  close(): void {}
}

afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
  RefusedSource.opened = [];
});

describe("a stream that is refused", () => {
  it("says what the daemon said of it, and is tried again", async () => {
    vi.useFakeTimers();
    vi.stubGlobal("EventSource", RefusedSource);
    const asked: string[] = [];
    vi.stubGlobal("fetch", async (path: string) => {
      asked.push(path);
      return new Response(JSON.stringify({ error: { message: "this page is open 16 times already", hint: "close one" } }), { status: 503 });
    });
    const store = new Store();
    const stop = watch(store);
    RefusedSource.opened[0]?.onerror?.();
    await vi.advanceTimersByTimeAsync(0);
    expect(asked).toEqual(["/api/v1/events"]);
    expect(store.live).toEqual({ state: "refused", message: "this page is open 16 times already; close one" });
    await vi.advanceTimersByTimeAsync(2000);
    expect(RefusedSource.opened).toHaveLength(2);
    stop();
  });
});
