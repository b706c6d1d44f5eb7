// Server-sent events out of a body that is read as it comes: EventSource cannot send a question.

/**
 * Each event as `{event, data}`, its data parsed as JSON; comments only prove that somebody is there.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @param {number} silentS seconds without a byte after which the other side counts as gone
 */
export async function* readEvents(body, silentS) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  try {
    for (;;) {
      const { value, done } = await within(reader.read().catch(inWords), silentS);
      if (done) return;
      kept += value;
      const frames = kept.split(/\r?\n\r?\n/);
      kept = frames.pop();
      for (const text of frames) {
        const event = parse(text);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening hangs up
  }
}

/** Browsers say "network error"; a cancelled answer stays an AbortError. */
function inWords(error) {
  if (error.name === "AbortError") throw error;
  throw new Error("The connection broke off. The service may be restarting; try again in a moment.");
}

function parse(text) {
  let event = "message";
  const data = [];
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
}

async function within(promise, seconds) {
  let timer;
  const silence = new Promise((_, reject) => {
    const words = `Nothing came for ${seconds} seconds: the connection is gone. Try again.`;
    timer = setTimeout(() => reject(new Error(words)), seconds * 1000);
  });
  try {
    return await Promise.race([promise, silence]);
  } finally {
    clearTimeout(timer);
  }
}
