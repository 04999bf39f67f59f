"""Pictures in and out: settings inside files, the mark of where a picture came from, contact sheets. Imports no torch."""
