"""Route traces: which experts tokens used, layer by layer, and how far one layer's choice tells the next one's."""
