type Json = Record<string, any>;
export interface State { resources: Json[]; pilots: Json[]; jobs: Json[] }
export interface Mock {
  url: string; port: number; jobs: Map<string, Json>; pilots: Map<string, Json>; resources: Map<string, Json>;
  requests: string[];
  change(...changes: Json[]): void;
  cut(): void;
  refuse(on: boolean): void;
  watchers(): number;
  close(): Promise<void>;
}
export function exampleState(options?: { jobs?: number; now?: number }): State;
export function emptyState(options?: { now?: number }): State;
export function startMock(options?: { state?: State; port?: number; token?: string }): Promise<Mock>;
export function animate(mock: Mock): NodeJS.Timeout;
