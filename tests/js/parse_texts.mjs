// usage: node parse_texts.mjs < texts.json: what the editor reads in each text, one JSON list.
import { readFileSync } from "node:fs";

import { format, parse, ScheduleError } from "../../nodes/web/core/schedule.js";

function read(text) {
  try {
    return { canonical: format(parse(text)) };
  } catch (error) {
    if (error instanceof ScheduleError) return { error: error.message };
    return { crash: String(error.stack) };
  }
}

process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(read)));
