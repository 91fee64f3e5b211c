// Each part starts on its own; one that the run has no data for finds no place on the page.
startDial();
startCurves();
startCosts();
startAnswers();
startSites();
startCosines();
startNorms();
startSamples();
document.documentElement.dataset.ready = "yes";
