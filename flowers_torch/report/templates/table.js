"use strict";
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
// Text that a spreadsheet would run as a formula gets an apostrophe, which flowers_torch removes.
function cell(value) {
  const text = String(value), safe = /^'*[=+@-]/.test(text) && !NUMBER.test(text) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}
function csv(rows) {
  return rows.map(row => row.map(cell).join(",")).join("\n") + "\n";
}
function saveTable(name, rows) {
  const link = document.createElement("a");
  // Spreadsheets take a table for UTF-8 only if it begins with this mark.
  link.href = URL.createObjectURL(new Blob(["\ufeff", csv(rows)], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
