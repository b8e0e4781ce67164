"""One module per notebook, with its name: reads artifacts and writes artifacts. Draws no figure."""
