"""Reading Bicep without its compiler: syntax, names, and what a template would deploy."""
