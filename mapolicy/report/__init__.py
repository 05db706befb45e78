"""A policy as a page: what is gathered is plain data, which `figures` draws and `page` writes down."""
