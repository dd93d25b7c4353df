"""Statistics, tables, figures and reports from evaluation rows alone; needs no Ray."""
