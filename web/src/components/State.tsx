import type { HubState, Job, JobState, PilotState } from "../model";

// A sign and a word, never the colour alone.
type Tone = "good" | "busy" | "wait" | "bad" | "off" | "warn";

export function Mark({ tone, label, title }: { tone: Tone; label: string; title?: string }) {
  return (
    <span class={`mark ${tone}`} title={title}>
      <svg viewBox="0 0 10 10" width="10" height="10" aria-hidden="true">{signs[tone]}</svg>
      {label}
    </span>
  );
}

const signs = {
  good: <path d="M1.5 5.2 4 7.7 8.6 2.6" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" />,
  busy: <path d="M2.5 1.5 8.5 5 2.5 8.5z" fill="currentColor" />,
  wait: <circle cx="5" cy="5" r="3.4" fill="none" stroke="currentColor" stroke-width="1.6" />,
  bad: <path d="M2.2 2.2 7.8 7.8M7.8 2.2 2.2 7.8" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" />,
  off: <path d="M2 5h6" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" />,
  warn: <path d="M5 1.2v4.6M5 8v.9" stroke="currentColor" stroke-width="1.9" stroke-linecap="round" />,
};

const jobTones: Record<JobState, [Tone, string]> = {
  submitted: ["wait", "submitted"], queued: ["wait", "waiting"], dispatched: ["wait", "starting"],
  running: ["busy", "running"], finished: ["good", "finished"], failed: ["bad", "failed"], canceled: ["off", "canceled"],
};
export function JobMark({ job }: { job: Job }) {
  if (job.prefilled)
    return <Mark tone={job.unreachable ? "warn" : "wait"} label="waiting" title={job.message} />;
  if (job.unreachable && !job.endedMs)
    return <Mark tone="warn" label="unknown" title={`its pilot cannot be reached; the last state that is known: ${job.state}`} />;
  const [tone, label] = jobTones[job.state] ?? ["wait", job.state];
  return <Mark tone={tone} label={label} />;
}

const pilotTones: Record<PilotState, [Tone, string]> = {
  submitted: ["wait", "submitted"], starting: ["wait", "starting"], running: ["busy", "running"],
  unreachable: ["warn", "unreachable"], draining: ["busy", "draining"], finished: ["good", "finished"], failed: ["bad", "failed"],
};
export function PilotMark({ state }: { state: PilotState }) {
  const [tone, label] = pilotTones[state] ?? ["wait", state];
  return <Mark tone={tone} label={label} />;
}

const hubTones: Record<HubState, [Tone, string]> = {
  none: ["off", "not connected"], connecting: ["wait", "connecting"], authenticating: ["wait", "logging in"],
  uploading: ["wait", "sending agent"], starting: ["wait", "starting hub"], connected: ["busy", "connected"],
  unreachable: ["warn", "unreachable"], failed: ["bad", "failed"],
};
export function HubMark({ state, local }: { state: HubState; local: boolean }) {
  if (local) return <Mark tone="busy" label="this machine" />;
  const [tone, label] = hubTones[state] ?? ["wait", state];
  return <Mark tone={tone} label={label} />;
}
