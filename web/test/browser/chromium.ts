// The browser that the tests drive: the system's, with a profile of its own.
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BrowserContext, chromium } from "playwright-core";

export interface Browser {
  context: BrowserContext;
  close(): Promise<void>;
}

export async function launch(): Promise<Browser> {
  const candidates = [process.env["CHROMIUM"] ?? "", "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  const program = candidates.find((path) => path !== "" && existsSync(path));
  if (program === undefined) throw new Error("no Chromium found; install Debian's 'chromium', or name one in $CHROMIUM");
  const profile = mkdtempSync(join(tmpdir(), "flotilla-page-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: program, headless: true, viewport: { width: 1440, height: 900 },
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  return {
    context,
    async close() {
      await context.close();
      rmSync(profile, { recursive: true, force: true });
    },
  };
}
