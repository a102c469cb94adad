// The JavaScript SDK on a lead: takes one JSON command a line on standard input, and says there, in JSON, what happens.
import { createInterface } from 'node:readline';

import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

const say = (event, details = {}) => console.log(JSON.stringify({ event, ...details }));

const tokens = []; // whoever waits for one
const askForToken = (channel) => {
  say('token wanted', { channel });
  return new Promise((resolve) => tokens.push(resolve));
};

let client;
const commands = {
  connect({ url, token, renewed }) {
    client = new Centrifuge(url, {
      websocket: WebSocket,
      minReconnectDelay: 50,
      maxReconnectDelay: 300,
      ...(token && { token }),
      ...(renewed && { getToken: () => askForToken(null) }),
    });
    client.on('connecting', ({ code, reason }) => say('connecting', { code, reason }));
    client.on('connected', ({ client: id }) => say('connected', { client: id }));
    client.on('disconnected', ({ code, reason }) => say('disconnected', { code, reason }));
    client.on('error', ({ error }) => say('error', { code: error.code }));
    client.on('subscribed', ({ channel }) => say('server subscribed', { channel }));
    client.on('publication', ({ channel, data }) => say('server publication', { channel, data }));
    client.connect();
  },
  subscribe({ channel, renewed }) {
    const subscription = client.newSubscription(channel, {
      minResubscribeDelay: 50,
      maxResubscribeDelay: 300,
      ...(renewed && { getToken: () => askForToken(channel) }),
    });
    subscription.on('subscribing', ({ code, reason }) => say('subscribing', { channel, code, reason }));
    subscription.on('subscribed', ({ wasRecovering, recovered, streamPosition }) =>
      say('subscribed', { channel, wasRecovering, recovered, streamPosition }),
    );
    subscription.on('unsubscribed', ({ code, reason }) => say('unsubscribed', { channel, code, reason }));
    subscription.on('publication', ({ data, info, tags, offset }) =>
      say('publication', { channel, data, info, tags, offset }),
    );
    subscription.on('error', ({ error }) => say('subscription error', { channel, code: error.code }));
    subscription.subscribe();
  },
  unsubscribe({ channel }) {
    client.getSubscription(channel).unsubscribe();
  },
  publish({ channel, data }) {
    client.publish(channel, data).then(
      () => say('published', { channel }),
      ({ code }) => say('refused', { channel, code }),
    );
  },
  token({ token }) {
    tokens.shift()(token);
  },
  disconnect() {
    client.disconnect();
  },
};

createInterface({ input: process.stdin })
  .on('line', (line) => {
    const { command, ...details } = JSON.parse(line);
    commands[command](details);
  })
  .on('close', () => process.exit(0));
