import { describe, expect, it } from "vitest";
import { ago, bytes, clock, count, duration, elapsed, plural } from "../../src/format";

describe("numbers for people", () => {
  it("bytes", () => {
    expect([0, 1, 999, 1000, 1500, 99_949, 123_456, 999_999, 2.2e9, 5e15].map(bytes)).toEqual(
      ["0 B", "1 B", "999 B", "1 kB", "1.5 kB", "100 kB", "123 kB", "1.0 MB", "2.2 GB", "5000 TB"]);
  });
  it("counts keep three digits", () => {
    expect([0, 0.25, 3.14159, 12.34, 42, 99.9, 123.4, 1234, 310_000, 5e6, 2.5e9].map(count)).toEqual(
      ["0", "0.25", "3.1", "12.3", "42", "100", "123", "1.2k", "310k", "5M", "2.5G"]);
  });
  it("durations", () => {
    expect([-5, 0, 40, 999, 1000, 9_940, 59_999, 60_000, 3_599_000, 3_600_000, 90_000_000].map(duration)).toEqual(
      ["0 ms", "0 ms", "40 ms", "999 ms", "1.0 s", "9.9 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "1 d 1 h"]);
    expect([-1, 999, 1000, 61_000].map(elapsed)).toEqual(["0 s", "0 s", "1 s", "1 min 01 s"]);
  });
  it("moments", () => {
    const now = new Date(2026, 5, 1, 12, 0, 0).getTime();
    expect(ago(now + 5000, now)).toBe("just now");
    expect(ago(now - 125_000, now)).toBe("2 min ago");
    expect(ago(now - 3 * 86_400_000, now)).toBe("3 d ago");
    expect(clock(now - 1000, now)).toBe("11:59:59");
    expect(clock(now - 86_400_000, now)).toBe("2026-05-31 12:00:00");
  });
  it("plurals", () => {
    expect([plural(0, "job"), plural(1, "job"), plural(1200, "job"), plural(2, "process", "processes")]).toEqual(
      ["0 jobs", "1 job", "1,200 jobs", "2 processes"]);
  });
});
