"""Results for people and other tools: export to other formats, predictions by name."""
