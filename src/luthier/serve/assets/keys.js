// Votes by the keys 1 to 4, wherever no text is being written.
addEventListener("keydown", (event) => {
  const place = ["1", "2", "3", "4"].indexOf(event.key);
  const writing = event.target.closest?.("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable], [role=listbox]");
  if (place < 0 || writing || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = document.querySelectorAll(".votes button")[place];
  if (button && !button.disabled) button.click();
});
// Gradio opens a list again on the very Tab that leaves it, and it would stay open over the page.
addEventListener("keydown", (event) => {
  if (event.key === "Tab" && event.target.matches?.("[role=combobox]")) event.stopImmediatePropagation();
}, true);
