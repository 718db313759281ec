"""Results for readers: tables, plots and HTML pages."""
