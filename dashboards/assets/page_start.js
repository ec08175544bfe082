
startTheme();
startTables();
startRuns();
startFront();
startPrinting();
drawWhenNear();
