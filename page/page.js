// Starts each view: the function that has the name of its section.

for (const [id, section] of Object.entries(data.sections)) window[id](section);
