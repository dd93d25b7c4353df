"""Figures and statistics, made from evaluation rows and from nothing else; works where there is no Ray."""
