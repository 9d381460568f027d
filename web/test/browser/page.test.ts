// The built page in a real browser, against the pretender of the daemon.
import type { Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type Mock, type State, emptyState, exampleState, startMock } from "../mock_server.mjs";
import { type Browser, launch } from "./chromium";

let browser: Browser;
let page: Page;
let mock: Mock;
let faults: string[] = [];
let foreign: string[] = [];

beforeAll(async () => {
  browser = await launch();
});
afterAll(async () => {
  await browser?.close();
});
afterEach(async () => {
  await page.close();
  await mock.close();
  expect(faults).toEqual([]);
  expect(foreign).toEqual([]);
});

async function open(state: State, options: { hash?: string; token?: string } = {}): Promise<void> {
  mock = await startMock({ state, token: options.token ?? "" });
  faults = [];
  foreign = [];
  page = await browser.context.newPage();
  // A violated policy, an exception, a request to elsewhere: never.
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !/ERR_|Failed to load resource/.test(message.text())) faults.push(message.text());
  });
  page.on("dialog", (dialog) => {
    faults.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(`http://127.0.0.1:${mock.port}/`)) foreign.push(request.url());
  });
  await page.goto(mock.url + (options.hash ?? ""));
  await page.waitForSelector(".presence.live");
}

const rowsInSight = () => page.locator(".jobs .window .job").count();
const job = (id: number, more: object) => ({ job: { id: String(id), spec: { command: { argv: ["./late", "--x"] } }, submitted_ms: String(Date.now()), ...more } });

describe("what a person sees", () => {
  it("resources, pilots, workers and jobs with their states and reasons", async () => {
    await open(exampleState({ jobs: 100 }));
    const text = (await page.locator("main").innerText()).replace(/\s+/g, " ");
    for (const expected of ["cluster-b", "refused every way to log in", "through desk", "sending the agent", "node04", "No route to host",
      "16/16", "1 ended pilot", "killed by signal 11 (SIGSEGV)", "there are not enough slots", "MPI × 16", "its pilot cannot be reached"])
      expect(text).toContain(expected);
    expect(await page.locator(".top").innerText()).toContain("0.1.0+4f2a9c11d0e3");
    const tile = page.locator(".tiles .bar");
    expect(await tile.locator("b").evaluate((bar) => (bar as HTMLElement).style.width)).toBe("50%");     // 44 of 88
    expect(await page.locator(".nodes .bar").first().getAttribute("aria-valuenow")).not.toBeNull();
  });

  it("a newcomer is told what to type next", async () => {
    await open(emptyState());
    expect(await page.locator(".command code").allInnerTexts()).toEqual([
      "flotilla resource add desk --location me@desk.example.org", "flotilla pilot start local", "./scripts/demo", "flotilla run -- hostname"]);
    mock.change(job(1, { state: "JOB_RUNNING", running_ms: String(Date.now()) }));
    await page.waitForSelector("#job-1");
    expect(await page.locator("#jobs .empty").count()).toBe(0);
  });

  it("changes arrive without a reload", async () => {
    await open(exampleState({ jobs: 20 }));
    const failed = page.locator(".tiles .failed b");
    const before = Number(await failed.innerText());
    mock.change(job(9001, { state: "JOB_RUNNING", running_ms: String(Date.now()) }));
    await page.waitForSelector("#job-9001.running");
    mock.change(job(9001, { state: "JOB_FAILED", exit: { kind: "EXITED", code: 3, message: "command ./late on node01 ended with exit code 3" } }));
    await page.waitForSelector("#job-9001.failed");
    expect(await page.locator("#job-9001").innerText()).toContain("ended with exit code 3");
    await expect.poll(() => failed.innerText()).toBe(String(before + 1));
  });

  it("calls and bytes per second of a worker, with a line", async () => {
    await open(exampleState({ jobs: 5 }));
    const gravity = [...mock.jobs.values()].find((one) => one["spec"].name === "gravity")!;
    const row = page.locator("tr.pick", { hasText: "gravity" });
    let calls = Number(gravity["channel"].calls);
    const timer = setInterval(() => {
      calls += 500;
      mock.change({ job: { ...gravity, channel: { ...gravity["channel"], calls: String(calls), bytes_to_worker: String(calls * 100) } } });
    }, 500);
    try {
      await expect.poll(() => row.locator(".sparkline .line").count(), { timeout: 15_000 }).toBe(1);
      await expect.poll(async () => Number.parseFloat(await row.locator("td").nth(6).innerText()), { timeout: 15_000 }).toBeGreaterThan(0);
      await row.click();
      await page.waitForSelector(".panel .chart canvas");
    } finally {
      clearInterval(timer);
    }
  });
});

describe("details of a job", () => {
  it("the reason, the tail of stderr, and the output", async () => {
    await open(exampleState({ jobs: 100 }));
    await page.fill("input[type=search]", "bonsai");
    await page.click(".jobs .job.failed:has-text('bonsai')");
    const panel = page.locator(".panel");
    await expect.poll(() => panel.innerText()).toContain("tree depth 21 exceeded");
    expect(await panel.innerText()).toContain("was killed by signal 11 (SIGSEGV)");
    expect(page.url()).toMatch(/#\/jobs\/\d+$/);
    await panel.getByRole("tab", { name: /stderr/ }).click();
    await expect.poll(() => panel.locator(".tail").innerText()).toContain("warning: <b>not bold</b> & escaped 0");
    await page.keyboard.press("Escape");
    await page.waitForSelector(".panel", { state: "detached" });
  });

  it("a link to a job opens it, and one to a job that is gone says so", async () => {
    await open(exampleState({ jobs: 10 }), { hash: "#/jobs/3" });
    await expect.poll(() => page.locator(".panel h2").innerText()).toContain("Job 3");
    await page.evaluate(() => { location.hash = "#/jobs/77777"; });
    await expect.poll(() => page.locator(".panel").innerText()).toContain("there is no job 77777");
  });

  it("text of users stays text", async () => {
    const evil = "<img src=x onerror=alert(1)><script>alert(2)</script>";
    const state = emptyState();
    state.resources.push({ spec: { name: evil, location: evil }, hub_state: "HUB_FAILED", hub_message: evil });
    state.pilots.push({ id: "1", spec: { resource: evil, label: evil }, state: "PILOT_FAILED", message: evil, ended_ms: String(Date.now()), nodes: [{ host: evil }] });
    state.jobs.push({ id: "1", spec: { name: evil, label: evil, command: { argv: [evil] } }, state: "JOB_FAILED", host: evil, folder: evil, exit: { message: evil }, stderr_bytes: "300" });
    state.jobs.push({ id: "2", spec: { name: evil, worker: { executable: evil } }, state: "JOB_FAILED", host: evil, exit: { message: evil } });
    await open(state, { hash: "#/jobs/1" });
    await expect.poll(() => page.locator(".panel").innerText()).toContain("onerror=alert(1)");
    expect(await page.locator("img").count()).toBe(1);         // the sign in the header
    expect(await page.evaluate(() => document.querySelectorAll("body script").length)).toBe(0);
  });
});

describe("ten thousand jobs", () => {
  it("are windowed, scrolled to the last, and filtered at once", async () => {
    await open(exampleState({ jobs: 10_000 }));
    expect(await rowsInSight()).toBeLessThan(80);
    await page.locator(".jobs").focus();
    await page.keyboard.press("End");
    await page.waitForSelector("#job-1.chosen");
    expect(await rowsInSight()).toBeLessThan(80);
    await page.keyboard.press("Home");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowDown");
    await expect.poll(() => page.locator(".job.chosen").getAttribute("aria-rowindex")).toBe("4");
    await page.keyboard.press("Escape");
    // The page answers while changes pour in.
    const burst = setInterval(() => mock.change(...Array.from({ length: 50 }, (_, i) => job(20_000 + i, { state: "JOB_RUNNING", running_ms: String(Date.now()) }))), 100);
    try {
      const worst = await page.evaluate(async () => {
        let longest = 0;
        let last = performance.now();
        for (let frame = 0; frame < 60; ++frame) {
          await new Promise((resolve) => requestAnimationFrame(resolve));
          const now = performance.now();
          longest = Math.max(longest, now - last);
          last = now;
        }
        return longest;
      });
      expect(worst).toBeLessThan(1000);
      await page.keyboard.press("/");
      await page.keyboard.type("seed 1017");
      await expect.poll(() => page.locator(".tools .shown").innerText()).toMatch(/^\d shown$/);
    } finally {
      clearInterval(burst);
    }
  });

  it("groups, sorting, and the way back from an empty list", async () => {
    await open(exampleState({ jobs: 300 }));
    await page.click(".chips button:has-text('failed')");
    await expect.poll(() => page.locator(".window .job:not(.failed)").count()).toBe(0);
    expect(await rowsInSight()).toBeGreaterThan(3);
    await page.click(".job.head button:has-text('Job')");
    const first = await page.locator(".window .job").first().innerText();
    await page.click(".job.head button:has-text('Job')");
    expect(await page.locator(".window .job").first().innerText()).not.toBe(first);
    await page.fill("input[type=search]", "no such thing");
    await page.click("text=Show all");
    await expect.poll(() => page.locator(".window .job").count()).toBeGreaterThan(20);
  });
});

describe("the connection", () => {
  it("a cut is shown, and what was missed arrives with the next stream", async () => {
    await open(exampleState({ jobs: 10 }));
    mock.cut();
    await page.waitForSelector(".presence.reconnecting");
    mock.change(job(5000, { state: "JOB_RUNNING", running_ms: String(Date.now()) }));
    await page.waitForSelector(".presence.live");
    await page.waitForSelector("#job-5000.running");
    expect(mock.watchers()).toBe(1);
  });

  it("a daemon that was started again does not know this browser: the page says what to do, and recovers", async () => {
    await open(exampleState({ jobs: 10 }));
    mock.refuse(true);
    mock.cut();
    await expect.poll(() => page.locator(".notice.bad").innerText(), { timeout: 15_000 }).toContain("run 'flotilla web'");
    mock.refuse(false);
    await page.waitForSelector(".presence.live", { timeout: 15_000 });
    expect(await page.locator(".notice").count()).toBe(0);
  });

  it("the token goes from the link into a cookie, and out of the address", async () => {
    await open(exampleState({ jobs: 3 }), { token: "s3cret" });
    expect(page.url()).not.toContain("s3cret");
    expect(await page.evaluate(() => document.cookie)).toBe("");
  });
});

describe("looks", () => {
  it("follow the system's preference, and stay readable", async () => {
    await open(exampleState({ jobs: 10 }));
    const contrast = () => page.evaluate(() => {
      const channel = (value: number) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
      const luminance = (colour: string) => {
        const [r = 0, g = 0, b = 0] = (colour.match(/[\d.]+/g) ?? []).map((part) => channel(Number(part) / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const back = luminance(getComputedStyle(document.querySelector(".card")!).backgroundColor);
      return [...document.querySelectorAll(".quiet, .reason, .mark, td, time")].map((element) => {
        const front = luminance(getComputedStyle(element).color);
        return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
      }).reduce((least, one) => Math.min(least, one), 21);
    });
    await page.emulateMedia({ colorScheme: "light" });
    const light = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    expect(await contrast()).toBeGreaterThan(4.5);      // WCAG AA
    await page.emulateMedia({ colorScheme: "dark" });
    expect(await page.evaluate(() => getComputedStyle(document.body).backgroundColor)).not.toBe(light);
    expect(await contrast()).toBeGreaterThan(4.5);
  });

  it("a narrow window does not scroll sideways", async () => {
    await open(exampleState({ jobs: 10 }));
    for (const width of [1440, 1100, 800, 480]) {
      await page.setViewportSize({ width, height: 800 });
      expect(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)).toBeLessThanOrEqual(0);
    }
    await page.setViewportSize({ width: 1440, height: 900 });
  });
});
