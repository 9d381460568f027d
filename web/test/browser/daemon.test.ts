// The page as the real daemon serves it, on the daemon's own events.
import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Browser, launch } from "./chromium";

const build = process.env["FLOTILLA_BUILD_DIR"] ?? resolve(__dirname, "../../../build/release");
const program = join(build, "bin", "flotilla");
const folder = mkdtempSync(join(tmpdir(), "fl-web-"));
const environment = { PATH: process.env["PATH"] ?? "", HOME: join(folder, "home"), FLOTILLA_STATE_DIR: join(folder, "state"), FLOTILLA_CONFIG: join(folder, "config.toml") };
const flotilla = (...words: string[]): string => execFileSync(program, words, { env: environment, encoding: "utf8", cwd: folder });
let browser: Browser | undefined;
let page: Page;
const faults: string[] = [];

beforeAll(async () => {
  if (!existsSync(program)) throw new Error(`${program} is not built; run scripts/build, or name a build in $FLOTILLA_BUILD_DIR`);
  mkdirSync(environment.HOME);
  writeFileSync(environment.FLOTILLA_CONFIG, "");
  flotilla("daemon", "start");
  flotilla("pilot", "wait");
  browser = await launch();
  page = await browser.context.newPage();
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !/ERR_|Failed to load resource/.test(message.text())) faults.push(message.text());
  });
  const { web_url: link } = JSON.parse(flotilla("daemon", "status", "--json")) as { web_url: string };
  await page.goto(link);
  await page.waitForSelector(".presence.live");
});
afterAll(async () => {
  await browser?.close();
  if (existsSync(environment.FLOTILLA_STATE_DIR)) flotilla("daemon", "stop", "--all");
  rmSync(folder, { recursive: true, force: true });
});

it("shows the pilot of this machine, and jobs as they come and end, with the reason of what failed", async () => {
  expect(await page.locator("#pilots, .pilots").first().innerText()).toContain("local");
  const id = Number(flotilla("submit", "--", "sh", "-c", "read line").trim().split(/\s+/).pop());
  await page.waitForSelector(`#job-${id}`);
  const failing = spawn(program, ["run", "--", "sh", "-c", "echo no licence >&2; exit 3"], { env: environment, cwd: folder });
  expect(await new Promise((done) => failing.on("exit", done))).toBe(3);
  await page.waitForSelector(`#job-${id + 1}.failed`);
  const row = (await page.locator(`#job-${id + 1}`).innerText()).replace(/\s+/g, " ");
  expect(row).toContain("exited with code 3");
  expect(page.url(), "the token is not left in the address").not.toContain("token");
  expect(faults).toEqual([]);
});

it("comes back by itself after the daemon was restarted", async () => {
  flotilla("daemon", "restart");
  const id = Number(flotilla("submit", "--", "true").trim().split(/\s+/).pop());
  await page.waitForSelector(`#job-${id}.finished`);
  await page.waitForSelector(".presence.live");
  expect(faults).toEqual([]);
});
