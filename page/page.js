// Starts each view: the function that has the name of its section; and the buttons that save what views show.

for (const [id, section] of Object.entries(data.sections)) window[id](section);
connectSaving();
