// Addresses of pictures in memory, one each.

const urls = new WeakMap();

export function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}

/** Give the memory back; the picture is not shown any more. */
export function release(blob) {
  if (!urls.has(blob)) return;
  URL.revokeObjectURL(urls.get(blob));
  urls.delete(blob);
}

/** Let the browser save a picture. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
