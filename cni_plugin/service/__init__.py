"""The verbs ADD, DEL, CHECK, GC and STATUS, and what they share: records, executor, garbage collection."""
