// Events → the response as it stands. A response.in_progress that is not the first is a reset: its output is all there
// is from then on, and what another entry into the handler goes on from.

const MINIMAL = { status: "", output: [] };

export class Fold {
  constructor() {
    this.response = null;
    this.entry = 1;
    this.taken = null; // by the last reset: {kept, discarded}, in items
    this.started = false;
  }

  get output() {
    return this.response?.output || [];
  }

  replace(response) {
    this.response = structuredClone(response);
  }

  apply(event) {
    if (event.response) {
      this.lifecycle(event);
      return;
    }
    this.response ??= structuredClone(MINIMAL);
    const { output } = this.response;
    const item = output[event.output_index];
    const part = item?.content?.[event.content_index];
    switch (event.type) {
      case "response.output_item.added":
      case "response.output_item.done":
        output[event.output_index] = structuredClone(event.item);
        break;
      case "response.content_part.added":
      case "response.content_part.done":
        if (item) (item.content ??= [])[event.content_index] = structuredClone(event.part);
        break;
      case "response.output_text.delta":
        if (part) part.text = (part.text || "") + event.delta;
        break;
      case "response.refusal.delta":
        if (part) part.refusal = (part.refusal || "") + event.delta;
        break;
      case "response.function_call_arguments.delta":
        if (item) item.arguments = (item.arguments || "") + event.delta;
        break;
    }
  }

  lifecycle(event) {
    if (event.type === "response.in_progress") {
      if (this.started) {
        const kept = event.response.output?.length || 0;
        this.entry += 1;
        this.taken = { kept, discarded: Math.max(0, this.output.length - kept) };
      }
      this.started = true;
    }
    this.replace(event.response);
  }
}
