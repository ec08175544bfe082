
startTheme();
startNavigation();
startTables();
startRuns();
startFront();
startPrinting();
drawWhenNear();
