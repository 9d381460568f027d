import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

// Says what would stand here and what to type next.
export function Empty({ children, command }: { children: ComponentChildren; command: string }) {
  return (
    <div class="empty">
      <p>{children}</p>
      <Command text={command} />
    </div>
  );
}

export function Command({ text }: { text: string }) {
  const [copied, setCopied] = useState(false);
  const copy = () => {
    void navigator.clipboard.writeText(text).then(() => {
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    });
  };
  return (
    <span class="command">
      <code>{text}</code>
      <button type="button" onClick={copy} aria-label={`copy: ${text}`}>{copied ? "copied" : "copy"}</button>
    </span>
  );
}
