"""The shipped workflows, described once: node types, graphs in columns, and the two forms that are written."""
